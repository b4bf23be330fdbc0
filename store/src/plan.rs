//! Plans a transaction's writes against a flow machine's state and each other: what each entry will
//! hold, which ports are taken and returned. Only taking ports changes anything, and that is undone
//! when the plan fails.

use crate::cell::VERSION_MAX;
use crate::flow_machine::FlowMachine;
use crate::key::{KEY_BYTES, Key, VALUE_BYTES, Value};
use crate::lifetimes::TTL_MAX_S;
use crate::machine::Machine;
use crate::transaction::{Fill, Refusal, Take, Transaction, WRITES_MAX, Write};
use crate::types::PoolId;
use arrayvec::ArrayVec;

/// A port of a pool (its place in the machine's list): pool, protocol, address and port.
type PlannedPort = (u8, u8, [u8; 6]);

/// What an entry will hold, and for how many seconds: `None` leaves the lifetime that it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) value: Value,
    pub(crate) ttl_s: Option<u32>,
}

/// What a transaction will do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Each key once, with what it will be; nothing is "absent".
    pub(crate) entries: ArrayVec<(Key, Option<Planned>), WRITES_MAX>,
    pub(crate) taken: ArrayVec<PlannedPort, WRITES_MAX>,
    pub(crate) returned: ArrayVec<PlannedPort, WRITES_MAX>,
}

impl Plan {
    fn set(&mut self, key: Key, planned: Option<Planned>) {
        match self.entries.iter_mut().find(|(other, _)| *other == key) {
            Some((_, old)) => *old = planned,
            None => self.entries.push((key, planned)),
        }
    }
}

impl FlowMachine {
    /// A whole plan, or the reason why there is none; the state is then as it was.
    pub(crate) fn plan(&mut self, transaction: &Transaction) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        let planned = transaction
            .writes
            .iter()
            .enumerate()
            .try_for_each(|(number, write)| {
                self.plan_write(&mut plan, transaction, (number, write))
            })
            .and_then(|()| self.plan_room(&plan));
        if let Err(refusal) = planned {
            for (at, protocol, endpoint) in plan.taken.into_iter().rev() {
                let (spec, pool) = self.slot_pool(at, transaction.slot);
                pool.undo_take(spec, protocol, endpoint);
            }
            return Err(refusal);
        }
        Ok(plan)
    }

    fn plan_write(
        &mut self,
        plan: &mut Plan,
        transaction: &Transaction,
        (number, write): (usize, &Write),
    ) -> Result<(), Refusal> {
        match write {
            Write::Put { key, value, fill, ttl_s } => {
                if *ttl_s > TTL_MAX_S {
                    return Err(Refusal::Malformed);
                }
                let taken = plan.taken.last().map(|(_, _, endpoint)| *endpoint);
                let (key, value) = filled(*key, *value, *fill, taken)?;
                plan.set(key, Some(Planned { value, ttl_s: Some(*ttl_s) }));
            }
            Write::Delete(key) => plan.set(*key, None),
            Write::Touch(key) => {
                if let Some(planned) = self.planned(plan, key) {
                    plan.set(*key, Some(planned));
                }
            }
            Write::Add { key, at, amount } => {
                let at = usize::from(*at);
                if !at.is_multiple_of(8) || at >= VALUE_BYTES {
                    return Err(Refusal::Malformed);
                }
                // An entry that is gone has nothing to count.
                if let Some(mut planned) = self.planned(plan, key) {
                    let word = &mut planned.value.0[at / 8];
                    *word = word.wrapping_add_signed(*amount);
                    plan.set(*key, Some(planned));
                }
            }
            Write::Take(take) => self.plan_take(plan, transaction, (number, take))?,
            Write::Return { pool, protocol, endpoint } => {
                let at = self.pool_place(*pool)?;
                let (spec, slot_pool) = self.slot_pool(at, transaction.slot);
                if !slot_pool.owns(spec, *protocol, *endpoint) {
                    return Err(Refusal::Malformed);
                }
                plan.returned.push((at, *protocol, *endpoint));
            }
        }
        Ok(())
    }

    fn plan_take(
        &mut self,
        plan: &mut Plan,
        transaction: &Transaction,
        (number, take): (usize, &Take),
    ) -> Result<(), Refusal> {
        let at = self.pool_place(take.pool)?;
        let now_ms = self.time_ms();
        let seed = mixed(
            transaction.id.client
                ^ mixed(transaction.id.serial.wrapping_add((number as u64) << 48)),
        );
        let (spec, pool) = self.slot_pool(at, transaction.slot);
        let endpoint = pool.take(spec, take, now_ms, seed)?;
        plan.taken.push((at, take.protocol, endpoint));
        Ok(())
    }

    /// What a key holds after the writes planned so far.
    fn planned(&self, plan: &Plan, key: &Key) -> Option<Planned> {
        match plan.entries.iter().find(|(other, _)| other == key) {
            Some((_, planned)) => *planned,
            None => self.table.get(key).map(|entry| Planned { value: entry.value, ttl_s: None }),
        }
    }

    fn plan_room(&self, plan: &Plan) -> Result<(), Refusal> {
        if self.mutations + plan.entries.len() as u64 > VERSION_MAX {
            return Err(Refusal::VersionsUsedUp);
        }
        let mut entries = u64::from(self.table.len());
        for (key, value) in &plan.entries {
            match (self.table.get(key).is_some(), value.is_some()) {
                (false, true) => entries += 1,
                (true, false) => entries -= 1,
                _ => {}
            }
        }
        if entries > u64::from(self.table.capacity()) { Err(Refusal::TableFull) } else { Ok(()) }
    }

    fn pool_place(&self, id: PoolId) -> Result<u8, Refusal> {
        let at = self.specs.iter().position(|spec| spec.id() == id);
        at.map(|at| at as u8).ok_or(Refusal::Malformed)
    }
}

/// A put's key and value with the taken endpoint in its places.
fn filled(
    key: Key,
    value: Value,
    fill: Fill,
    taken: Option<[u8; 6]>,
) -> Result<(Key, Value), Refusal> {
    let (mut key_bytes, mut value_bytes) = (key.to_bytes(), value.to_bytes());
    for (at, bytes) in
        [(fill.key_at, &mut key_bytes[..KEY_BYTES]), (fill.value_at, &mut value_bytes[..])]
    {
        if let Some(at) = at {
            let taken = taken.ok_or(Refusal::Malformed)?;
            let place = bytes.get_mut(usize::from(at)..usize::from(at) + taken.len());
            place.ok_or(Refusal::Malformed)?.copy_from_slice(&taken);
        }
    }
    // Kind 0 marks an empty cell.
    if key_bytes[0] == 0 {
        return Err(Refusal::Malformed);
    }
    Ok((Key::from_bytes(&key_bytes), Value::from_bytes(&value_bytes)))
}

/// splitmix64's last step: each bit of the result depends on each of `x`.
const fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
