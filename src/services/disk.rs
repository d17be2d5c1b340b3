//! How much room the disk of the store has left.
//!
//! Rule: a member leaves the journals before its disk is full, because a store that failed once is never written to again, and
//! what keeps the member in the mesh and its node's searches going needs room as well. What of the journals' file holds nothing
//! is room for journals alone: the disk itself must have a quarter of the least all the same, for that file's log and for all
//! else. Must not know: what is stored, who takes over.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use crate::store::JournalStore;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// What was seen last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes that are free on the disk; `None`: not known yet.
    pub free: Option<u64>,
    /// Bytes of the journals' file that hold nothing.
    pub spare: u64,
    /// Together fewer than there should be: nothing more is taken in until there are a quarter more than that again.
    pub low: bool,
}

impl Room {
    fn next(self, free: u64, spare: u64, least: u64) -> Self {
        let enough = if self.low { least.saturating_add(least / 4) } else { least };
        let low = free.saturating_add(spare) < enough || free < enough / 4;
        Self { free: Some(free), spare, low }
    }
}

/// Bytes that a process without special rights may still write on the disk of `dir`.
fn free(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Looks at the disk of `dir`, on which the journals are, until nobody listens any more; with fewer than `least` bytes it is low. A
/// disk, or a file, that can't be looked at is as it was.
pub async fn watch(dir: PathBuf, journals: JournalStore, least: u64, says: watch::Sender<Room>) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut unseen = false;
    loop {
        tick.tick().await;
        let of = dir.clone();
        match tokio::task::spawn_blocking(move || free(&of)).await {
            Ok(Ok(free)) => {
                unseen = false;
                let before = *says.borrow();
                let spare = journals.spare_bytes().await.unwrap_or(before.spare);
                let now = before.next(free, spare, least);
                if now.low && !before.low {
                    tracing::error!(
                        free, spare, least, dir = %dir.display(),
                        "the disk of the store is almost full: this member orders and stores no more writes, others do; make room, and it \
                         comes back by itself"
                    );
                } else if before.low && !now.low {
                    tracing::info!(
                        free,
                        spare,
                        "the disk of the store has room again: this member takes part in writes again"
                    );
                }
                // A few bytes more or less wake nobody.
                says.send_if_modified(|room| {
                    *room = now;
                    before.low != now.low || before.free.is_none()
                });
            }
            Ok(Err(error)) if !unseen => {
                unseen = true;
                tracing::warn!(%error, dir = %dir.display(), "how much room the disk has can't be seen");
            }
            Ok(Err(_)) => {}
            // The runtime is ending.
            Err(_) => return,
        }
        if says.is_closed() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_low_until_it_has_a_quarter_more_than_the_least() {
        let mut room = Room::default();
        for (free, low) in [(100, false), (99, true), (110, true), (124, true), (125, false), (101, false), (0, true)] {
            room = room.next(free, 0, 100);
            assert_eq!(room, Room { free: Some(free), spare: 0, low }, "{free}");
        }
        assert!(!Room::default().next(0, 0, 0).low, "with 0 it is never looked at as low");
    }

    #[test]
    fn what_holds_nothing_in_the_journals_file_is_room_while_the_disk_has_some_for_all_else() {
        let mut room = Room::default();
        let seen = [((60, 40), false), ((60, 39), true), ((60, 64), true), ((60, 65), false), ((25, 900), false)];
        let then = [((24, 900), true), ((30, 900), true), ((31, 900), false), ((0, u64::MAX), true)];
        for ((free, spare), low) in seen.into_iter().chain(then) {
            room = room.next(free, spare, 100);
            assert_eq!(room, Room { free: Some(free), spare, low }, "{free} and {spare}");
        }
    }

    #[test]
    fn a_disk_can_be_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free(dir.path()).unwrap() > 0);
        assert!(free(&dir.path().join("none")).is_err());
    }
}
