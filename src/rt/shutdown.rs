//! The phases of a shutdown, seen by every task.
//!
//! Phases only go forward. If the trigger is dropped, the process has lost its head and everybody stops. Must not know:
//! what draining means to a task.

use tokio::sync::watch;

/// Where the process stands.
///
/// ```text
/// Running ── SIGTERM ──▶ Draining ── nothing under way, or out of time ──▶ Stopped
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// At work.
    Running,
    /// No new requests are taken, those under way may end.
    Draining,
    /// Everything ends now.
    Stopped,
}

/// Moves the process to its next phase.
#[derive(Debug)]
pub struct Trigger {
    phase: watch::Sender<Phase>,
}

impl Trigger {
    /// Moves on to `to`; nothing happens if that phase has been reached.
    pub fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|now| {
            let forward = *now < to;
            *now = to.max(*now);
            forward
        });
    }
}

/// Tells a task which phase the process is in.
#[derive(Debug, Clone)]
pub struct Shutdown {
    phase: watch::Receiver<Phase>,
}

impl Shutdown {
    /// A running process.
    pub fn new() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(Phase::Running);
        (Trigger { phase: sender }, Self { phase: receiver })
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        // A dropped sender leaves its last value behind.
        if self.phase.has_changed().is_err() { Phase::Stopped } else { *self.phase.borrow() }
    }

    /// Waits until the phase is `phase` or a later one.
    ///
    /// Cancel-safe: nothing is lost by dropping the future.
    pub async fn reached(&self, phase: Phase) {
        let mut receiver = self.phase.clone();
        // An error means that the trigger is gone, which is the last phase.
        let _ = receiver.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward() {
        let (trigger, shutdown) = Shutdown::new();
        assert_eq!(shutdown.phase(), Phase::Running);
        trigger.advance(Phase::Stopped);
        trigger.advance(Phase::Draining);
        assert_eq!(shutdown.phase(), Phase::Stopped);
        shutdown.reached(Phase::Draining).await;
        shutdown.reached(Phase::Stopped).await;
    }

    #[tokio::test]
    async fn waiting_ends_when_the_phase_comes_and_not_before() {
        let (trigger, shutdown) = Shutdown::new();
        let mut wait = draining_for_test(shutdown.clone());
        tokio::task::yield_now().await;
        assert!(!wait.is_finished());
        trigger.advance(Phase::Draining);
        (&mut wait).await.unwrap();
        assert_eq!(shutdown.phase(), Phase::Draining);
    }

    #[tokio::test]
    async fn losing_the_trigger_stops_everybody() {
        let (trigger, shutdown) = Shutdown::new();
        let wait = draining_for_test(shutdown.clone());
        drop(trigger);
        wait.await.unwrap();
        assert_eq!(shutdown.phase(), Phase::Stopped);
    }

    fn draining_for_test(shutdown: Shutdown) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move { shutdown.reached(Phase::Draining).await })
    }
}
