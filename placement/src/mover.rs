//! Drives the move that is under way: on the node that owns its source shard, a stage after the
//! other, each of which may be begun again by anybody at any time.
//!
//! What a stage does is the store's business ([`nearstate_store::slot_mover`]); which stage it is,
//! the map says. Between two stages stands a command to the system shard that names the phase
//! before, so a driver that has been overtaken finds out there and looks at the map again.

use crate::moves::{MovePhase, SlotMove};
use crate::service::{BoxFuture, ClusterControl, ControlError};
use crate::system::{SystemCommand, SystemReply};
use nearstate_store::driver::Store;
use nearstate_store::slot_mover::{Copied, MoveError, SlotOrder};
use nearstate_store::{Reply, ShardId};

/// The stages of a move, as they are asked of a node that has a replica of its source.
pub trait SlotMover: Send + Sync {
    /// Copies while the source serves.
    fn copy(&self, order: SlotOrder) -> BoxFuture<'_, Result<Copied, MoveError>>;

    /// Seals, sends the rest, lets the target adopt.
    fn switch(
        &self,
        order: SlotOrder,
        copied: Option<Copied>,
    ) -> BoxFuture<'_, Result<(), MoveError>>;

    /// Drops what the source has left.
    fn drop_rest(&self, order: SlotOrder) -> BoxFuture<'_, Result<(), MoveError>>;

    /// Makes the target give up, unless it has adopted the slot: whether it has not.
    fn give_up_target(&self, order: SlotOrder) -> BoxFuture<'_, Result<bool, MoveError>>;

    /// Lets the source serve as before.
    fn unseal(&self, order: SlotOrder) -> BoxFuture<'_, Result<(), MoveError>>;
}

impl SlotMover for Store {
    fn copy(&self, order: SlotOrder) -> BoxFuture<'_, Result<Copied, MoveError>> {
        Box::pin(async move { self.copy_slot(&order).await })
    }

    fn switch(
        &self,
        order: SlotOrder,
        copied: Option<Copied>,
    ) -> BoxFuture<'_, Result<(), MoveError>> {
        Box::pin(async move { self.switch_slot(&order, copied).await })
    }

    fn drop_rest(&self, order: SlotOrder) -> BoxFuture<'_, Result<(), MoveError>> {
        Box::pin(async move { self.drop_slot(&order).await })
    }

    fn give_up_target(&self, order: SlotOrder) -> BoxFuture<'_, Result<bool, MoveError>> {
        Box::pin(async move { Store::give_up_target(self, &order).await })
    }

    fn unseal(&self, order: SlotOrder) -> BoxFuture<'_, Result<(), MoveError>> {
        Box::pin(async move { self.unseal_slot(&order).await })
    }
}

/// Gets a command into the log of the system shard, wherever its owner is.
pub type AskSystem<'a> =
    dyn Fn(SystemCommand) -> BoxFuture<'a, Result<Reply, ControlError>> + Send + Sync + 'a;

/// Drives the first move of the map as far as it goes, if this node owns its source.
pub async fn mover_turn(control: &dyn ClusterControl) {
    let Some(mover) = control.mover() else { return };
    let map = control.map();
    let Some(first) = map.moves.first() else { return };
    if control.status(first.from).is_some_and(|status| status.is_owner) {
        let ask = |command: SystemCommand| control.propose(ShardId::SYSTEM, command.encode());
        drive(*first, mover, &ask).await;
    }
}

/// Drives the move that is under way as far as it goes. To be called again while it is in the map.
pub async fn drive(mut order: SlotMove, mover: &dyn SlotMover, ask: &AskSystem<'_>) {
    let mut copied = None;
    loop {
        let next = match stage(mover, &order, &mut copied).await {
            Ok(next) => next,
            Err(error) => {
                let SlotMove { number, slot, phase, .. } = order;
                tracing::info!(number, %slot, %phase, %error, "a move waits");
                return;
            }
        };
        match advance(ask, &order, next).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(number = order.number, %error, "a move was not said to go on");
                return;
            }
        }
        let SlotMove { number, slot, from, to, phase } = order;
        match next {
            Some(phase) => order.phase = phase,
            None => {
                let moved = phase == MovePhase::Dropping;
                tracing::info!(number, %slot, %from, %to, moved, "a move is over");
                return;
            }
        }
    }
}

/// Does what the phase asks for, and gives the next one; `None`: the move is over.
async fn stage(
    mover: &dyn SlotMover,
    order: &SlotMove,
    copied: &mut Option<Copied>,
) -> Result<Option<MovePhase>, MoveError> {
    let what = order.order();
    match order.phase {
        MovePhase::Copying => match mover.copy(what).await {
            Ok(done) => {
                *copied = Some(done);
                Ok(Some(MovePhase::Switching))
            }
            Err(error @ MoveError::Impossible(_)) => {
                tracing::warn!(number = order.number, slot = %order.slot, %error, "given up");
                Ok(Some(MovePhase::Cancelling))
            }
            Err(error) => Err(error),
        },
        MovePhase::Switching => match mover.switch(what, copied.take()).await {
            Ok(()) => Ok(Some(MovePhase::Dropping)),
            Err(error @ (MoveError::Impossible(_) | MoveError::GivenUp)) => {
                tracing::warn!(number = order.number, slot = %order.slot, %error, "given up");
                let gave_up = mover.give_up_target(what).await?;
                Ok(Some(if gave_up { MovePhase::Cancelling } else { MovePhase::Dropping }))
            }
            Err(error) => Err(error),
        },
        MovePhase::Dropping => mover.drop_rest(what).await.map(|()| None),
        MovePhase::Cancelling => {
            // The target cannot adopt any more, whether it is there or not: writes go on at once.
            mover.unseal(what).await?;
            let gave_up = mover.give_up_target(what).await?;
            assert!(gave_up, "a move that was cancelled was adopted all the same: our own bug");
            Ok(None)
        }
    }
}

/// Tells the system shard; whether the move was still in the phase that this node thought.
async fn advance(
    ask: &AskSystem<'_>,
    order: &SlotMove,
    next: Option<MovePhase>,
) -> Result<bool, ControlError> {
    let command = SystemCommand::AdvanceMove { number: order.number, from: order.phase, to: next };
    match ask(command).await? {
        Reply::System(bytes) => match SystemReply::decode(&bytes) {
            Ok(SystemReply::Done(_)) => Ok(true),
            Ok(other) => {
                tracing::debug!(?other, "somebody else drives this move");
                Ok(false)
            }
            Err(error) => Err(ControlError(error.to_string())),
        },
        other => Err(ControlError(format!("not an answer of the system shard: {other:?}"))),
    }
}

#[cfg(test)]
mod tests;
