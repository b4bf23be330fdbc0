//! Policy, inventory, plan, execution.
