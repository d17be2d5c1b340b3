//! How a peer is probed, and when it is taken for gone.
//!
//! Rule: an unanswered probe is one without an answer when the next is due; behind one the next come twice as soon, for a peer
//! that is gone keeps writes waiting. Probes are counted, not time: a process that stood still for a while suspects nobody for
//! what it did not ask. Must not know: connections, what is asked, what else a suspicion rests on.

use std::time::Duration;

/// Between two probes, unless configured.
pub const INTERVAL: Duration = Duration::from_millis(300);
/// Probes in a row without an answer that make a suspect.
pub const UNANSWERED_MAX: u32 = 3;
/// How long an answer to a probe is waited for; a late one still clears the suspicion.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of one peer by its probes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probing {
    unanswered: u32,
}

/// What follows when a probe is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The one before has come to nothing.
    pub lost: bool,
    /// The peer is taken for gone, until it answers.
    pub suspect: bool,
    /// The next is due in so long.
    pub pause: Duration,
}

impl Probing {
    /// A probe is sent now.
    pub fn due(&mut self, interval: Duration) -> Due {
        let before = self.unanswered;
        self.unanswered = before.saturating_add(1);
        Due {
            lost: before > 0,
            suspect: before >= UNANSWERED_MAX,
            pause: if before > 0 { interval / 2 } else { interval },
        }
    }

    /// A probe was answered, or the peer has shown in another way that it lives.
    pub fn answered(&mut self) {
        self.unanswered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_unanswered_make_a_suspect_within_three_intervals_of_the_last_answer() {
        let mut probing = Probing::default();
        let (mut waited, mut suspect_after) = (Duration::ZERO, None);
        for _ in 0..6 {
            let due = probing.due(INTERVAL);
            if due.suspect {
                suspect_after.get_or_insert(waited);
            }
            waited += due.pause;
        }
        // The first of them may have been sent a whole interval after the peer was last there.
        assert_eq!(suspect_after, Some(INTERVAL * 2));
    }

    #[test]
    fn an_answer_begins_the_count_anew() {
        let mut probing = Probing::default();
        for _ in 0..10 {
            (0..UNANSWERED_MAX).for_each(|_| assert!(!probing.due(INTERVAL).suspect));
            probing.answered();
            assert_eq!(probing, Probing::default());
        }
        assert_eq!(probing.due(INTERVAL), Due { lost: false, suspect: false, pause: INTERVAL });
        assert_eq!(probing.due(INTERVAL), Due { lost: true, suspect: false, pause: INTERVAL / 2 });
    }
}
