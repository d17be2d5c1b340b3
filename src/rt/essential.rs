//! Tells when a task ends that is to run as long as the process.
//!
//! Rule: a task that is aborted, or dropped with its runtime, was ended on purpose; one that returns or panics was not. Must
//! not know: what tasks do.

use std::fmt::Display;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The tasks without which the process is of no use; clones watch together.
#[derive(Debug, Clone, Default)]
pub struct Essential {
    ended: Arc<watch::Sender<Option<String>>>,
}

/// Why a task ended, as its output says.
pub trait Ending {
    /// For people; `None` if it says nothing.
    fn reason(self) -> Option<String>;
}

impl Ending for () {
    fn reason(self) -> Option<String> {
        None
    }
}

impl<E: Display> Ending for Result<(), E> {
    fn reason(self) -> Option<String> {
        self.err().map(|e| e.to_string())
    }
}

/// Speaks up if the task panics.
struct Watched<'a> {
    name: &'static str,
    by: &'a Essential,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.by.tell(self.name, Some("it failed inside".to_owned()));
        }
    }
}

impl Essential {
    /// `task`, to be spawned on whichever runtime; its end is told.
    pub fn watched<F>(&self, name: &'static str, task: F) -> impl Future<Output = ()> + use<F>
    where
        F: Future<Output: Ending>,
    {
        let by = self.clone();
        async move {
            let _watched = Watched { name, by: &by };
            let reason = task.await.reason();
            by.tell(name, reason);
        }
    }

    /// Spawns `task` on this runtime.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<()>
    where
        F: Future<Output: Ending> + Send + 'static,
    {
        tokio::spawn(self.watched(name, task))
    }

    fn tell(&self, name: &str, reason: Option<String>) {
        let reason = reason.unwrap_or_else(|| "it returned".to_owned());
        self.ended.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| format!("{name} ended: {reason}"));
            is_first
        });
    }

    /// Waits until a task has ended; which, and why.
    ///
    /// Cancel-safe: an end is kept.
    pub async fn failed(&self) -> String {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender lives in `self`.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_task_that_returns_fails_or_panics_is_told_by_its_name() {
        let of = async |essential: &Essential| {
            tokio::time::timeout(Duration::from_secs(10), essential.failed()).await.expect("it is told")
        };
        let returns = Essential::default();
        returns.spawn("the first", async {}).await.unwrap();
        returns.spawn("the second", async {}).await.unwrap();
        assert_eq!(of(&returns).await, "the first ended: it returned");
        let fails = Essential::default();
        fails.spawn("the sweep", async { Err::<(), _>("no disk") }).await.unwrap();
        assert_eq!(of(&fails).await, "the sweep ended: no disk");
        let panics = Essential::default();
        let probe = async { assert!(std::hint::black_box(false), "on purpose") };
        assert!(panics.spawn("the probe", probe).await.unwrap_err().is_panic());
        assert_eq!(of(&panics).await, "the probe ended: it failed inside");
    }

    #[tokio::test]
    async fn a_task_that_is_aborted_ended_on_purpose() {
        let essential = Essential::default();
        let task = essential.spawn("the probe", std::future::pending::<()>());
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(futures_util::poll!(std::pin::pin!(essential.failed())).is_pending());
    }
}
