//! Clients at every member that write the same documents on and on, and what must be so in the end: nothing acknowledged
//! lost, nothing refused done, all tasks ended, all copies equal.
//!
//! Must not know: which faults there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use hyper::Method;
use netsim::heard::{Attempt, End, judge};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::members::{Members, number};
use crate::mesh::{Client, task_uid, wait_for_task};

/// The index that is written.
const NOTES: &str = "notes";
const IDS: u64 = 300;
/// Documents of one write.
const AT_ONCE: u64 = 3;
const PAUSE: Duration = Duration::from_millis(20);
/// Longer than a sidecar may take to answer.
const PATIENCE: Duration = Duration::from_secs(40);
/// Within this all is as it was, after the last fault.
const SETTLED: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

/// One shard, by the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Who orders its writes.
    pub primary: usize,
    /// Who has a copy.
    pub holders: Vec<usize>,
    /// Whose copies are in sync.
    pub in_sync: Vec<usize>,
}

impl Shard {
    fn read(shard: &Value) -> anyhow::Result<Self> {
        let copies = shard["replicas"].as_array().context("expected replicas")?;
        let of = |wanted: fn(&Value) -> bool| {
            copies.iter().filter(|copy| wanted(copy)).map(|copy| number(&copy["member"])).collect::<anyhow::Result<_>>()
        };
        Ok(Self {
            primary: number(&shard["primary"])?,
            holders: of(|_| true)?,
            in_sync: of(|copy| copy["inSync"] == true)?,
        })
    }
}

/// What clients have heard.
type Heard = Arc<Mutex<Vec<Attempt>>>;

/// See the module.
pub struct Writes {
    clients: JoinSet<()>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    heard: Heard,
    /// The index on the nodes.
    physical: String,
    /// The shard of each id.
    shards: Vec<usize>,
}

impl Writes {
    /// Makes and fills the index, and begins to write through every member.
    pub async fn begin(members: &Members) -> anyhow::Result<Self> {
        let mut client = members.client(0);
        for (path, body) in [
            ("/indexes".to_owned(), json!({"uid": NOTES, "primaryKey": "id"})),
            (documents(), (0..IDS).map(|id| json!({ "id": id })).collect()),
        ] {
            let made = client.json(Method::POST, &path, &body).await?.success()?;
            wait_for_task(&mut client, task_uid(&made.json()?)?).await?;
        }
        let index = members.ask(0, &format!("/_miroir/indexes/{NOTES}")).await?;
        let physical = index["physical"].as_str().context("expected `physical`")?.to_owned();
        let heard = Heard::default();
        let mut writes = Self { clients: JoinSet::new(), stop: Arc::default(), heard, physical, shards: Vec::new() };
        let copies = writes.equal_copies(members, Instant::now() + SETTLED).await?;
        let shards: BTreeMap<u64, usize> =
            copies.iter().flat_map(|(shard, documents)| documents.keys().map(|id| (*id, *shard))).collect();
        ensure!(shards.len() as u64 == IDS, "{} documents of {IDS} are on nodes", shards.len());
        writes.shards = shards.into_values().collect();
        for member in 0..members.count() {
            let (client, heard, stop) = (members.client(member), Arc::clone(&writes.heard), Arc::clone(&writes.stop));
            writes.clients.spawn(async move {
                let mut client = client;
                for number in 1.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                    let attempt = write(&mut client, member, number).await;
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
                    sleep(PAUSE).await;
                }
            });
        }
        Ok(writes)
    }

    fn heard(&self) -> Vec<Attempt> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The record of the index, shard by shard, as a member has it.
    pub async fn state(&self, members: &Members, at: usize) -> anyhow::Result<Vec<Shard>> {
        let index = members.ask(at, &format!("/_miroir/indexes/{NOTES}")).await?;
        index["shards"].as_array().context("expected shards")?.iter().map(Shard::read).collect()
    }

    /// The member that is primary of most shards.
    pub async fn primary_of_most(&self, members: &Members) -> anyhow::Result<usize> {
        let state = self.state(members, 0).await?;
        let count = |m: &usize| state.iter().filter(|shard| shard.primary == *m).count();
        (0..members.count()).max_by_key(count).context("there are members")
    }

    /// A primary, and another in sync with it.
    pub async fn primary_and_follower(&self, members: &Members) -> anyhow::Result<(usize, usize)> {
        let primary = self.primary_of_most(members).await?;
        let state = self.state(members, 0).await?;
        let led = state.iter().filter(|shard| shard.primary == primary);
        let follower = led.flat_map(|shard| &shard.in_sync).find(|m| **m != primary);
        Ok((primary, *follower.context("expected a follower in sync")?))
    }

    /// Waits until all copies are in sync.
    pub async fn in_sync(&self, members: &Members, until: Instant) -> anyhow::Result<()> {
        loop {
            let state = self.state(members, 0).await?;
            match state.iter().find(|shard| shard.in_sync.len() != shard.holders.len()) {
                None => return Ok(()),
                Some(shard) => ensure!(Instant::now() < until, "not in sync again: {shard:?}"),
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until a member is primary of a shard.
    pub async fn leads(&self, members: &Members, member: usize, until: Instant) -> anyhow::Result<()> {
        let leads = |shards: &[Shard]| shards.iter().any(|shard| shard.primary == member);
        self.becomes(members, member, leads, "leads nothing", until).await
    }

    /// Waits until a member is primary of no shard, and in no set.
    pub async fn leaves(&self, members: &Members, member: usize, until: Instant) -> anyhow::Result<()> {
        let out = |shards: &[Shard]| shards.iter().all(|s| s.primary != member && !s.in_sync.contains(&member));
        self.becomes(members, member, out, "leads or stores still", until).await
    }

    async fn becomes(
        &self,
        members: &Members,
        member: usize,
        is: impl Fn(&[Shard]) -> bool,
        otherwise: &str,
        until: Instant,
    ) -> anyhow::Result<()> {
        loop {
            let state = self.state(members, 0).await?;
            if is(&state) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{} {otherwise}: {state:?}", members.name(member));
            sleep(LOOK).await;
        }
    }

    /// Waits until clients of each of `among` have had writes of every shard acknowledged that were sent from now on.
    pub async fn go_on(&self, among: &[usize], within: Duration) -> anyhow::Result<()> {
        let from = Instant::now();
        loop {
            let heard = self.heard();
            let taken = heard.iter().filter(|a| a.sent >= from.into_std() && a.is_taken());
            let mut lacking: BTreeSet<(usize, usize)> =
                among.iter().flat_map(|m| self.shards.iter().map(|s| (*m, *s))).collect();
            for attempt in taken {
                lacking.retain(|(m, s)| *m != attempt.at || !self.of(attempt).any(|shard| shard == *s));
            }
            if lacking.is_empty() {
                return Ok(());
            }
            if from.elapsed() >= within {
                let at = lacking.first().map(|(member, _)| *member);
                let last: Vec<&Attempt> = heard.iter().rev().filter(|a| Some(a.at) == at).take(4).collect();
                bail!(
                    "no write of (member, shard) was acknowledged within {} s: {lacking:?}; the first one's last: {last:?}",
                    within.as_secs()
                );
            }
            sleep(LOOK).await;
        }
    }

    fn of(&self, attempt: &Attempt) -> impl Iterator<Item = usize> {
        attempt.ids.iter().filter_map(|id| self.shards.get(usize::try_from(*id).ok()?).copied())
    }

    /// The longest time from `from` on in which no write of some shard through `among` was acknowledged.
    pub fn gap(&self, among: &[usize], from: Instant) -> Duration {
        let heard = self.heard();
        let now = Instant::now();
        let all: BTreeSet<usize> = self.shards.iter().copied().collect();
        let longest = |shard: &usize| {
            let touches = |a: &&Attempt| among.contains(&a.at) && self.of(a).any(|s| s == *shard);
            let taken = heard.iter().filter(|a| a.is_taken()).filter(touches).map(|a| Instant::from_std(a.ended));
            let mut at: Vec<Instant> = taken.chain([now]).collect();
            at.sort_unstable();
            at.windows(2).filter(|pair| pair[1] > from).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
        };
        all.iter().map(longest).max().unwrap_or_default()
    }

    /// How many writes sent from `from` on through `member` were acknowledged.
    pub fn taken_by(&self, member: usize, from: Instant) -> usize {
        let is = |a: &&Attempt| a.at == member && a.sent >= from.into_std() && a.is_taken();
        self.heard().iter().filter(is).count()
    }

    /// Ends the clients and judges; all faults must be over. Says how many writes there were.
    pub async fn end(mut self, members: &Members) -> anyhow::Result<String> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client that writes ended")?;
        }
        let mut heard = self.heard();
        let until = Instant::now() + SETTLED;
        for attempt in &mut heard {
            match attempt.end {
                End::Taken(uid) => {
                    let status = ended(members, uid, until).await?;
                    ensure!(
                        status.as_deref() == Some("succeeded"),
                        "task {uid} of an acknowledged write has {status:?}: {attempt:?}"
                    );
                }
                // A task that nobody knows when all faults are over has left nothing anywhere.
                End::Unknown(Some(uid)) if ended(members, uid, until).await?.is_none() => {
                    attempt.end = End::Refused("there is no such task".into());
                }
                End::Unknown(_) | End::GivenUp | End::Refused(_) => {}
            }
        }
        let copies = self.equal_copies(members, until).await?;
        let documents: BTreeMap<u64, &Value> =
            copies.values().flatten().map(|(id, document)| (*id, document)).collect();
        let judged = judge(&heard, |id, client| documents.get(&id)?[format!("c{client}")].as_u64());
        let sound = judged.map_err(|faults| {
            let some = faults[..faults.len().min(3)].join("\n");
            anyhow::anyhow!("{} writes are not as they must be:\n{some}", faults.len())
        })?;
        let count = |is: fn(&Attempt) -> bool| heard.iter().filter(|a| is(a)).count();
        Ok(format!(
            "{} writes acknowledged, {} refused, {} unknown, of which {} came behind an acknowledged one",
            count(Attempt::is_taken),
            count(|a| matches!(a.end, End::Refused(_))),
            count(Attempt::is_unknown),
            sound.late.len()
        ))
    }

    /// Waits until all copies are in sync and every node has the same documents of a shard as the others that hold it.
    async fn equal_copies(&self, members: &Members, until: Instant) -> anyhow::Result<Copies> {
        loop {
            match self.look_at_copies(members).await {
                Ok(copies) => return Ok(copies),
                Err(why) if Instant::now() > until => return Err(why),
                Err(_) => sleep(LOOK).await,
            }
        }
    }

    async fn look_at_copies(&self, members: &Members) -> anyhow::Result<Copies> {
        let state: Vec<Shard> = self.state(members, 0).await?;
        let mut stored = Vec::new();
        for member in 0..members.count() {
            stored.push(self.stored(members, member).await?);
        }
        let mut copies = Copies::new();
        for (shard, Shard { holders, in_sync, .. }) in state.iter().enumerate() {
            ensure!(in_sync.len() == holders.len(), "shard {shard} is in sync at {in_sync:?} of {holders:?}");
            let mut of = holders.iter().map(|m| stored[*m].get(&shard).cloned().unwrap_or_default());
            let first = of.next().unwrap_or_default();
            for other in of {
                if first != other {
                    let unlike = first.iter().find(|(id, document)| other.get(id) != Some(document));
                    bail!("the copies of shard {shard} at {holders:?} differ: {unlike:?}");
                }
            }
            copies.insert(shard, first);
        }
        Ok(copies)
    }

    /// The documents on a member's node, without the shard's mark.
    async fn stored(&self, members: &Members, member: usize) -> anyhow::Result<Copies> {
        let mut node = members.node_client(member).await?;
        let answer = node.get(&format!("/indexes/{}/documents?limit=100000", self.physical)).await?;
        let mut copies = Copies::new();
        if answer.status == 404 {
            return Ok(copies);
        }
        let page = answer.success()?.json()?;
        for document in page["results"].as_array().context("expected documents")? {
            let mut document = document.clone();
            let mark = document.as_object_mut().and_then(|d| d.remove("_miroir_shard"));
            let mark = mark.as_ref().and_then(Value::as_str).and_then(|mark| mark.chars().next());
            let shard = u32::from(mark.context("a document without a shard")?).checked_sub(0xa000);
            let id = document["id"].as_u64().context("expected a number as id")?;
            let shard = usize::try_from(shard.context("a document with another shard")?)?;
            copies.entry(shard).or_default().insert(id, document);
        }
        Ok(copies)
    }
}

/// Documents by shard and id.
type Copies = BTreeMap<usize, BTreeMap<u64, Value>>;

fn documents() -> String {
    format!("/indexes/{NOTES}/documents")
}

async fn write(client: &mut Client, member: usize, number: u64) -> Attempt {
    // The same documents for all, in another order for each.
    let start = number * 7 + member as u64 * 101;
    let ids: BTreeSet<u64> = (0..AT_ONCE).map(|i| (start + i * 53) % IDS).collect();
    let field = format!("c{member}");
    let document = |id: &u64| json!({"id": id, &*field: number, "newest": format!("{member}-{number}")});
    let body = Bytes::from(ids.iter().map(document).collect::<Value>().to_string());
    let sent = Instant::now();
    let answer = client.send(Method::PUT, &documents(), "application/json", body, PATIENCE).await;
    let end = match answer.and_then(|answer| Ok((answer.status, answer.json()?))) {
        Ok((202, said)) => End::Taken(said["taskUid"].as_u64().unwrap_or_default()),
        Ok((503, said)) => End::Refused(said["code"].to_string()),
        Ok((_, said)) => End::Unknown(said["taskUid"].as_u64()),
        Err(_) if sent.elapsed() >= PATIENCE => End::GivenUp,
        Err(_) => End::Unknown(None),
    };
    let (sent, ended) = (sent.into_std(), Instant::now().into_std());
    Attempt { client: member, number, ids, at: member, sent, ended, end }
}

/// Waits until a member says how a task has ended; `None`: it knows of no such task.
async fn ended(members: &Members, uid: u64, until: Instant) -> anyhow::Result<Option<String>> {
    let mut client = members.client(usize::try_from(uid)? % members.count());
    loop {
        let answer = client.get(&format!("/tasks/{uid}")).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let task = answer.success()?.json()?;
        match task["status"].as_str() {
            Some("enqueued" | "processing") => ensure!(Instant::now() < until, "task {uid} does not end: {task}"),
            Some(status) => return Ok(Some(status.to_owned())),
            None => bail!("expected a status in {task}"),
        }
        sleep(LOOK).await;
    }
}
