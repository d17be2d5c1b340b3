//! Settings that were changed while this member was away: its node gets them when it is back, before it is searched.
//!
//! Rule: one change after the other, in the order of the record; what journals hold waits for them; a change is told as got only when the node's task for it has
//! ended. What the settings themselves are refused for every node refuses; the node's own trouble is waited for. Must not know:
//! who noted what was missed.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use super::entries::queued;
use super::{Local, Queued};
use crate::net::node::NodeRequest;
use crate::proto::apply::{Answer, Flaw, Status};
use crate::proto::missed;
use crate::services::apply::ended;
use crate::services::records::{ChangeError, index_key};
use crate::types::{PhysicalIndex, TaskUid};

/// How long the node may take to enqueue a change.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until what did not work is tried again; doubles up to the longest.
const AGAIN: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// Codes of what is not the settings' own fault.
const OWN_TROUBLE: [&str; 8] = [
    "internal",
    "io_error",
    "no_space_left_on_device",
    "too_many_open_files",
    "database_size_limit_reached",
    "invalid_store_file",
    "remote_timeout",
    "vector_embedding_error",
];

/// What became of one change here.
enum Got {
    /// The node has it, or refuses it as every node does.
    It(TaskUid),
    /// Nothing is missed any more.
    Nothing,
    /// It is to be tried again.
    Later(String),
}

impl Local {
    /// Whether the index's record says that this member's node lacks settings that others have.
    pub fn misses_settings(&self, physical: &PhysicalIndex) -> bool {
        self.record_of(physical).is_some_and(|record| record.value.misses_settings(self.cluster.own()))
    }

    /// Waits until the node has all settings of an index that others have.
    ///
    /// Cancel-safe.
    pub async fn has_settings(&self, physical: &PhysicalIndex) {
        let mut changes = self.records.watch();
        loop {
            changes.borrow_and_update();
            if !self.misses_settings(physical) {
                return;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Begins to bring the node what it missed of an index, unless that is under way.
    pub(super) fn catch_up(&self, physical: &PhysicalIndex) {
        if !self.misses_settings(physical) || !self.catching_up().insert(physical.clone()) {
            return;
        }
        let (local, physical) = (self.clone(), physical.clone());
        tokio::spawn(async move {
            local.get_missed(&physical).await;
            local.catching_up().remove(&physical);
            // What was missed since it was looked at last.
            local.look_again.notify_one();
        });
    }

    async fn get_missed(&self, physical: &PhysicalIndex) {
        let (mut pause, mut trouble) = (AGAIN, None);
        loop {
            let later = match self.get_next(physical).await {
                Got::Nothing => return,
                Got::It(task) => match self.tell_got(physical, task).await {
                    Ok(()) => {
                        tracing::info!(index = %physical, %task, "the node has got settings that were changed while it was away");
                        pause = AGAIN;
                        continue;
                    }
                    Err(error) => error.to_string(),
                },
                Got::Later(why) => why,
            };
            if trouble.as_ref() != Some(&later) {
                tracing::warn!(index = %physical, why = later, "the node lacks settings that others have; until it has them it is not searched");
                trouble = Some(later);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    async fn get_next(&self, physical: &PhysicalIndex) -> Got {
        let deadline = Instant::now() + PATIENCE;
        let slot = self.slot(physical);
        let mut on_node = slot.enqueue.lock().await;
        let record = self.record_of(physical).filter(|record| !record.value.deleted && on_node.deleted.is_none());
        let Some(record) = record else { return Got::Nothing };
        let Some((task, patch)) = missed::next(&record.value, self.cluster.own()) else { return Got::Nothing };
        if let Some(down) = self.node_down() {
            return Got::Later(format!("{:?}", down.reply));
        }
        if let Err(answer) = self.make_ready(&record.value, &slot, &mut on_node, deadline).await {
            return Got::Later(format!("{:?}", answer.reply));
        }
        let patch = Bytes::copy_from_slice(patch.as_bytes());
        let request = NodeRequest::json(Method::PATCH, format!("/indexes/{physical}/settings"), patch);
        let answer = queued(self.send("write", request, deadline).await);
        // What comes to the queue from here on comes behind it.
        drop(on_node);
        match answer {
            Queued { answer: Answer::Taken(node_task), .. } => match ended(self, &node_task).await {
                Some(Status::Succeeded) => Got::It(task),
                Some(Status::Failed(flaw)) => refused(task, flaw),
                Some(other) => Got::Later(format!("the node's task ended as {other:?}")),
                None => Got::Later("the node does not know its task any more".into()),
            },
            Queued { answer: Answer::Refused(flaw), .. } => refused(task, flaw),
            Queued { why, .. } => Got::Later(why.unwrap_or_default()),
        }
    }

    /// Says in the record that this member has got a change.
    async fn tell_got(&self, physical: &PhysicalIndex, task: TaskUid) -> Result<(), ChangeError> {
        loop {
            let Some(index) = self.record_of(physical) else { return Ok(()) };
            let mut record = index.value.clone();
            missed::got(&mut record, task, self.cluster.own(), index.version + 1);
            if record == index.value {
                return Ok(());
            }
            match self.records.write(&index_key(physical), index.version, &record).await {
                // A newer one has come here by then.
                Err(ChangeError::Conflict(version)) if version > index.version => {}
                written => return written.map(drop),
            }
        }
    }
}

fn refused(task: TaskUid, flaw: Flaw) -> Got {
    if OWN_TROUBLE.contains(&&*flaw.code) {
        return Got::Later(format!("{}: {}", flaw.code, flaw.message));
    }
    tracing::warn!(%task, code = flaw.code, message = flaw.message, "the node refuses settings that were changed while it was away");
    Got::It(task)
}
