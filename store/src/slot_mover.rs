//! Moves a slot from one shard to another, a stage at a time. Run by a node that has a replica of
//! the source, best by its owner.
//!
//! Whoever calls this decides which stage it is, and that no other move is under way; a stage may
//! be begun any number of times, by any number of nodes, in any order of deaths. What has been
//! decided is in the logs of the two shards and nowhere else: a stage proposes its steps again, and
//! a step that was done before says so. What makes two drivers harmless is the attempt that pieces
//! carry: the target takes in one attempt at a time, whole and in order.
//!
//! *Held up.* From the seal on, transactions of the slot are told to ask at the target, and wait
//! there until it has adopted the slot, and so do reads; that takes the seal's entry, and one entry
//! with the rest of what changed that adopts the slot.

use crate::clock::boot_now;
use crate::consensus::ProposeError;
use crate::driver::Store;
use crate::machine::Reply;
use crate::shard::Shard;
use crate::slot_move::{
    MoveEntry, MoveReply, Obstacle, PIECE_KEYS_MAX, PIECE_POOL_BYTES_MAX, Piece, Step, TakeOut,
    TakenOut,
};
use crate::types::{ShardId, SlotId};
use core::time::Duration;
use thiserror::Error;

/// Patience with one step: shorter than with a client's proposal, so that a move that cannot go on
/// is given up before those who wait are.
const STEP_PATIENCE: Duration = Duration::from_millis(1_000);
/// Rounds of copying what changed during the round before. A slot that changes faster than it is
/// copied is sealed after so many all the same.
const ROUNDS_MAX: u32 = 16;
/// So little left to copy is copied under the seal.
const REST_ITEMS: usize = 32;

/// A move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotOrder {
    /// Its number, above those of all moves before.
    pub number: u64,
    /// Which slot.
    pub slot: SlotId,
    /// The shard that has it.
    pub from: ShardId,
    /// The shard that gets it.
    pub to: ShardId,
}

/// How far an attempt at a move has come: what to seal after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    attempt: u64,
    pieces: u32,
}

/// Why a stage did not end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MoveError {
    /// Begin the stage again.
    #[error("{0}; it is tried again")]
    Again(String),
    /// The move is to be given up.
    #[error("the move cannot be: {0}")]
    Impossible(#[from] Obstacle),
    /// The target has given the move up.
    #[error("the move was given up")]
    GivenUp,
    /// The target holds the slot already.
    #[error("the slot has moved already")]
    Adopted,
}

fn again(reason: impl ToString) -> MoveError {
    MoveError::Again(reason.to_string())
}

impl Store {
    /// First stage: copies the slot while the source serves it, until hardly anything is left to
    /// copy. Changes nothing for anybody.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub async fn copy_slot(&self, order: &SlotOrder) -> Result<Copied, MoveError> {
        // Unique, and never 0.
        let attempt = self.node().0 << 48 | boot_now().0 >> 4 | 1;
        self.take_out(order, [TakeOut::Watch(order.slot)]).await?;
        let begin = Step::Begin { attempt, slot: order.slot };
        match self.step(order.to, order.number, begin).await? {
            MoveReply::Done => {}
            MoveReply::Over { holds: true } => return Err(MoveError::Adopted),
            MoveReply::Over { holds: false } => return Err(MoveError::GivenUp),
            other => return Err(unexpected(other)),
        }
        let mut copied = Copied { attempt, pieces: 0 };
        let mut rounds = 0;
        while rounds < ROUNDS_MAX {
            let (piece, is_all) = self.next_piece(order).await?;
            let items = piece.items();
            if items > 0 {
                self.send(order, &mut copied, piece).await?;
            }
            rounds += u32::from(is_all);
            if is_all && items <= REST_ITEMS {
                break;
            }
        }
        Ok(copied)
    }

    /// Second stage: seals the slot, sends the rest, and lets the target adopt it. May only be
    /// begun once nobody gives the move up any more but by [`Store::give_up_target`].
    ///
    /// # Errors
    /// See [`MoveError`]. After [`MoveError::Impossible`] the target is to be made to give up.
    pub async fn switch_slot(
        &self,
        order: &SlotOrder,
        copied: Option<Copied>,
    ) -> Result<(), MoveError> {
        match self.switch(order, copied).await {
            Err(MoveError::Adopted) => Ok(()),
            ended => ended,
        }
    }

    async fn switch(&self, order: &SlotOrder, copied: Option<Copied>) -> Result<(), MoveError> {
        let copied = match copied {
            Some(copied) => copied,
            None => self.copy_slot(order).await?,
        };
        let seal = Step::Seal { slot: order.slot, to: order.to };
        match self.step(order.from, order.number, seal).await? {
            MoveReply::Done => {}
            MoveReply::Impossible(obstacle) => return Err(obstacle.into()),
            other => return Err(unexpected(other)),
        }
        let (Copied { attempt, pieces }, last) = self.send_rest(order, copied).await?;
        match self.step(order.to, order.number, Step::Adopt { attempt, pieces, last }).await? {
            MoveReply::Done => Ok(()),
            MoveReply::Impossible(obstacle) => Err(obstacle.into()),
            other => Err(unexpected(other)),
        }
    }

    /// Last stage, once the map says where the slot is: what is left of it at the source goes.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub async fn drop_slot(&self, order: &SlotOrder) -> Result<(), MoveError> {
        self.take_out(order, [TakeOut::Watch(order.slot)]).await?;
        let nothing = Step::Drop { keys: Vec::new(), is_last: false };
        match self.step(order.from, order.number, nothing).await? {
            MoveReply::More => {}
            MoveReply::Over { .. } => return Ok(()),
            other => return Err(unexpected(other)),
        }
        // This replica may be behind: only what is sealed here is all there will ever be.
        self.until_sealed(order).await?;
        loop {
            let (piece, is_last) = self.next_piece(order).await?;
            if piece.items() == 0 && !is_last {
                continue;
            }
            let keys = piece.entries.iter().map(|moved| moved.key).chain(piece.removed).collect();
            match self.step(order.from, order.number, Step::Drop { keys, is_last }).await? {
                MoveReply::More if !is_last => {}
                MoveReply::Done | MoveReply::Over { .. } => break,
                other => return Err(unexpected(other)),
            }
        }
        self.take_out(order, [TakeOut::Forget]).await?;
        Ok(())
    }

    /// Makes the target give a move up, unless it has adopted the slot: whether it has not.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub async fn give_up_target(&self, order: &SlotOrder) -> Result<bool, MoveError> {
        loop {
            let step = Step::GiveUp { slot: order.slot };
            match self.step(order.to, order.number, step).await? {
                MoveReply::More => {}
                MoveReply::Done => return Ok(true),
                MoveReply::Over { holds } => return Ok(!holds),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Lets the source serve the slot as before. Only for a move that the target can not adopt any
    /// more.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub async fn unseal_slot(&self, order: &SlotOrder) -> Result<(), MoveError> {
        let unseal = Step::Unseal { slot: order.slot };
        match self.step(order.from, order.number, unseal).await? {
            MoveReply::Done | MoveReply::Over { .. } => {}
            other => return Err(unexpected(other)),
        }
        self.take_out(order, [TakeOut::Forget]).await?;
        Ok(())
    }

    /// Sends the rest of what changed before the seal, and the pools, but for the last piece.
    async fn send_rest(
        &self,
        order: &SlotOrder,
        mut copied: Copied,
    ) -> Result<(Copied, Piece), MoveError> {
        self.until_sealed(order).await?;
        let asks = [TakeOut::Pools { number: order.number }, TakeOut::Next];
        let [TakenOut::Pools(pools), next] = self.take_out(order, asks).await? else {
            return Err(again("the move is not under way here"));
        };
        let mut parts = pools.chunks(PIECE_POOL_BYTES_MAX).peekable();
        let (mut piece, mut is_all) = piece_of(next)?;
        loop {
            piece.pools = parts.next().unwrap_or_default().to_vec();
            if is_all && parts.peek().is_none() {
                return Ok((copied, piece));
            }
            self.send(order, &mut copied, piece).await?;
            (piece, is_all) = match is_all {
                true => (Piece::default(), true),
                false => self.next_piece(order).await?,
            };
        }
    }

    /// Until the seal has been applied by this node's replica.
    async fn until_sealed(&self, order: &SlotOrder) -> Result<(), MoveError> {
        let moves = self.source(order)?.parts.moves.clone();
        let sealed = tokio::time::timeout(STEP_PATIENCE, moves.sealed(order.number));
        sealed.await.map_err(|_| again("this node's replica of the source is behind"))
    }

    async fn next_piece(&self, order: &SlotOrder) -> Result<(Piece, bool), MoveError> {
        let [next] = self.take_out(order, [TakeOut::Next]).await?;
        piece_of(next)
    }

    async fn send(
        &self,
        order: &SlotOrder,
        copied: &mut Copied,
        piece: Piece,
    ) -> Result<(), MoveError> {
        debug_assert!(piece.entries.len() <= PIECE_KEYS_MAX);
        let step = Step::Piece { attempt: copied.attempt, place: copied.pieces, piece };
        match self.step(order.to, order.number, step).await? {
            MoveReply::Done => {
                copied.pieces += 1;
                Ok(())
            }
            MoveReply::Over { holds: true } => Err(MoveError::Adopted),
            MoveReply::Over { holds: false } => Err(again("the target says the move is over")),
            MoveReply::Impossible(obstacle) => Err(obstacle.into()),
            other => Err(unexpected(other)),
        }
    }

    fn source(&self, order: &SlotOrder) -> Result<&Shard, MoveError> {
        let shard = self.shards.get(&order.from).ok_or_else(|| again("no such shard"))?;
        Ok(shard)
    }

    /// Asks this node's replica of the source.
    async fn take_out<const N: usize>(
        &self,
        order: &SlotOrder,
        asks: [TakeOut; N],
    ) -> Result<[TakenOut; N], MoveError> {
        let taken = self.source(order)?.replica.take_out(asks).await;
        taken.ok_or_else(|| again("this node's replica of the source has stopped"))
    }

    /// Gets a step into a shard's log. It may be there twice: that changes nothing.
    async fn step(&self, shard: ShardId, number: u64, step: Step) -> Result<MoveReply, MoveError> {
        let payload = MoveEntry::new(number, step).encode();
        match self.propose_within(shard, payload, STEP_PATIENCE).await {
            Ok(Reply::System(bytes)) => {
                MoveReply::decode(&bytes).ok_or_else(|| again("an answer that cannot be"))
            }
            Ok(other) => Err(again(format!("{other:?} is no answer to a step of a move"))),
            Err(error @ (ProposeError::Payload(_) | ProposeError::TooLarge(_))) => {
                tracing::error!(%shard, number, %error, "a step of a move is not acceptable");
                Err(MoveError::Impossible(Obstacle::Contradiction))
            }
            Err(error) => Err(again(error)),
        }
    }
}

fn piece_of(taken: TakenOut) -> Result<(Piece, bool), MoveError> {
    match taken {
        TakenOut::Piece(piece, is_all) => Ok((*piece, is_all)),
        _ => Err(again("what changed meanwhile was not noted")),
    }
}

fn unexpected(reply: MoveReply) -> MoveError {
    again(format!("a shard answered {reply:?}"))
}
