//! What an applier is to know of records, journals and the node.
//!
//! Levels, not events: whoever looks late sees how things are now, nothing piles up, and nothing that was missed matters. Rule: an
//! applier leaves only if it has seen everything that was put on its board, and what is put there afterwards is known to be
//! unheard. Must not know: what follows from it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::proto::apply::{Copied, Standing, Stop};
use crate::proto::env::Instant;
use crate::types::{Epoch, ShardId};

/// One shard of which this member has a copy by the record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Level {
    /// The copy is being filled: without a position of its own nothing is applied to it.
    pub(super) learner: bool,
    /// This process orders its writes.
    pub(super) primary: bool,
    /// No other copy is in sync.
    pub(super) alone: bool,
    /// It changes with the primary.
    pub(super) epoch: Epoch,
    /// Up to here entries are known to be committed.
    pub(super) committed: u64,
}

/// Everything that is level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Levels {
    /// Shards that this member holds.
    pub(super) shards: BTreeMap<ShardId, Level>,
    /// The node answers.
    pub(super) up: bool,
    /// Counts the node's starts, as far as they were seen.
    pub(super) starts: u64,
    /// The index is gone for good.
    pub(super) gone: bool,
}

/// Something that concerns the copy of one shard.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) shard: ShardId,
    pub(super) what: What,
    /// Told how the copy stands then, when that is durable.
    pub(super) tell: oneshot::Sender<Standing>,
}

/// What.
#[derive(Debug)]
pub(super) enum What {
    /// Something else than entries has made the copy.
    Made(Copied),
    /// It must be made anew.
    Unmade,
    /// It is in doubt, and nobody has a better one.
    Kept,
    /// It was compared, and is the same.
    Checked,
    /// It is to wait until then, or to go on.
    Stop(Option<(Stop, Instant)>),
    /// Nothing is to be done.
    Look,
}

#[derive(Debug, Default)]
struct State {
    levels: Levels,
    asked: Vec<Asked>,
    changed: bool,
    left: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Board {
    state: Mutex<State>,
    changed: Notify,
}

impl Board {
    /// A board on which this stands.
    pub(super) fn of(levels: Levels) -> Self {
        let state = State { levels, changed: true, ..State::default() };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what stands here; says whether anybody will see it.
    pub(super) fn update(&self, change: impl FnOnce(&mut Levels)) -> bool {
        let mut state = self.state();
        change(&mut state.levels);
        self.told(&mut state)
    }

    /// Puts something here that concerns a copy; gives it back if nobody will see it.
    pub(super) fn ask(&self, asked: Asked) -> Result<(), Asked> {
        let mut state = self.state();
        if state.left {
            return Err(asked);
        }
        state.asked.push(asked);
        self.told(&mut state);
        Ok(())
    }

    fn told(&self, state: &mut State) -> bool {
        state.changed = true;
        self.changed.notify_one();
        !state.left
    }

    /// What stands here, if it was changed since it was last looked at, and what concerns copies.
    pub(super) fn look(&self) -> Option<(Levels, Vec<Asked>)> {
        let mut state = self.state();
        std::mem::take(&mut state.changed).then(|| (state.levels.clone(), std::mem::take(&mut state.asked)))
    }

    /// Nobody looks here any more; refused if something was not looked at.
    pub(super) fn leave(&self) -> bool {
        let mut state = self.state();
        state.left = !state.changed;
        state.left
    }

    /// Waits until there may be something to look at.
    ///
    /// Cancel-safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_leaves_what_was_not_looked_at() {
        let board = Board::of(Levels::default());
        assert!(!board.leave() && board.look().is_some() && board.look().is_none());
        assert!(board.update(|levels| levels.up = true));
        assert!(!board.leave());
        assert!(board.look().unwrap().0.up && board.leave());
        assert!(!board.update(|levels| levels.up = false), "nobody sees it");
        let (tell, _) = oneshot::channel();
        assert!(board.ask(Asked { shard: ShardId(0), what: What::Look, tell }).is_err());
    }
}
