//! Counts what is under way, and waits for its end.
//!
//! Must not know: what is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// How much is under way; clones count together.
#[derive(Debug, Clone, Default)]
pub struct UnderWay(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    count: AtomicUsize,
    none: Notify,
}

/// One thing that is under way, until it is dropped.
#[derive(Debug)]
pub struct Counted(UnderWay);

impl UnderWay {
    /// One more is under way.
    #[must_use]
    pub fn begin(&self) -> Counted {
        self.0.count.fetch_add(1, Ordering::SeqCst);
        Counted(self.clone())
    }

    /// Waits until all that is under way now has ended. What begins meanwhile may be waited for, too, but not for ever:
    /// one moment in which nothing is under way is enough.
    ///
    /// Cancel-safe: nothing is lost by dropping the future.
    pub async fn ended(&self) {
        let mut none = std::pin::pin!(self.0.none.notified());
        none.as_mut().enable();
        if self.0.count.load(Ordering::SeqCst) > 0 {
            none.await;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let inner = &self.0.0;
        if inner.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            inner.none.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_the_last_is_waited_for() {
        let all = UnderWay::default();
        all.ended().await;
        let (one, other) = (all.begin(), all.clone().begin());
        let mut ended = std::pin::pin!(all.ended());
        assert!(futures_util::poll!(ended.as_mut()).is_pending());
        drop(one);
        assert!(futures_util::poll!(ended.as_mut()).is_pending());
        drop(other);
        // What begins afterwards is not waited for.
        let _later = all.begin();
        assert!(futures_util::poll!(ended.as_mut()).is_ready());
        assert!(futures_util::poll!(std::pin::pin!(all.ended())).is_pending());
    }
}
