//! Tells a webhook of tasks that ended: as a node does, one POST of gzipped NDJSON, a task a line, and no repetition.
//!
//! Must not know: when a task is finished, HTTP.

use std::io::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::driver::Hook;
use crate::net::webhook::WebhookClient;
use crate::proto::tasks::{Shown, view};
use crate::telemetry::metrics::Metrics;
use crate::types::TaskUid;

/// A webhook that is told of tasks.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// How it is reached.
    pub client: WebhookClient,
    /// Series.
    pub metrics: Arc<Metrics>,
}

#[async_trait]
impl Hook for Webhook {
    async fn tell(&self, tasks: Vec<(TaskUid, Shown)>) {
        let told = match lines(&tasks) {
            Ok(body) => self.client.post(body.into()).await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = told {
            self.metrics.webhook_failures.inc();
            tracing::warn!(webhook = ?self.client, error, tasks = tasks.len(), "a webhook was not told of tasks that ended");
        }
    }
}

fn lines(tasks: &[(TaskUid, Shown)]) -> std::io::Result<Vec<u8>> {
    let mut lines = GzEncoder::new(Vec::new(), Compression::default());
    for (uid, task) in tasks {
        lines.write_all(&serde_json::to_vec(&view::task(*uid, task))?)?;
        lines.write_all(b"\n")?;
    }
    lines.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::proto::tasks::home::Work;
    use crate::proto::tasks::{Head, Status, Subject, When};

    #[tokio::test]
    async fn a_webhook_that_does_not_hear_is_counted() {
        let client = WebhookClient::new("http://127.0.0.1:1/", None).unwrap();
        let webhook = Webhook { client, metrics: Arc::default() };
        webhook.tell(Vec::new()).await;
        assert_eq!(webhook.metrics.webhook_failures.get(), 1);
    }

    #[test]
    fn a_task_is_a_line() {
        let head = Head {
            index_uid: Some("movies".into()),
            subject: Subject::Clear,
            work: Work::Order,
            enqueued: When(0),
            custom_metadata: Some("a\nb".into()),
            key: None,
        };
        let shown = Shown {
            head,
            status: Status::Canceled,
            canceled_by: Some(9),
            started: None,
            progress: None,
            refused: 0,
            outcome: None,
        };
        let body = lines(&[(TaskUid(3), shown.clone()), (TaskUid(4), shown)]).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let uids: Vec<_> = lines.iter().map(|task| task["uid"].as_u64().unwrap()).collect();
        assert_eq!((uids, &lines[0]["canceledBy"], text.ends_with('\n')), (vec![3, 4], &9.into(), true));
    }
}
