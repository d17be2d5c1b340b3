//! What a scenario says and asks: steps under faults, what members must see of them, who leads.
//!
//! Rule: each wait has a bound, and what was waited for is checked a while longer. Must not know: which scenarios there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::future::join_all;
use hyper::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::faults::{Faults, Picture};
use super::forged;
use super::holdings::{self, Holding};
use super::leaders::{self, STANDING, Watch};
use super::members::{INDEX, Members, has_leases, number};
use super::report::Measured;
use super::searches::{self, Expected, Searches};
use crate::mesh::{say, task_uid, wait_for_task};
use miroir::net::CallError;
use miroir::wire::verbs::Refusal;

/// Leases last so long here, so that trials are short; the defaults are 10 and 3.
pub const TTL: Duration = Duration::from_secs(4);
const RENEW: Duration = Duration::from_secs(1);
/// A lost leader is replaced within TTL + 1 s. The bounds of the protocol are held to exactly in virtual time; real processes
/// share their machine with others, and are asked over HTTP, and get twice the time.
pub const FAILOVER: Duration = TTL.saturating_add(Duration::from_secs(1)).saturating_mul(2);
/// After a cut has healed all agree within a TTL; twice of that for the same reason.
pub const HEALED_LEADERS: Duration = TTL.saturating_mul(2);
/// Three probes, 300 ms apart, make a suspect; a lost connection ends after 5 s. The same allowance.
const NOTICED: Duration = Duration::from_secs(10);
/// Dialling again takes a pause of at most 2 s and an attempt of at most 3 s. The same allowance, and more.
const HEALED: Duration = Duration::from_secs(15);
/// For how long what was waited for must stay so.
const STEADY: Duration = Duration::from_secs(2);
/// The alias that is flipped, and the index that it is flipped to.
pub const ALIAS: &str = "live";
const OTHER: &str = "other";
const LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// A disk with less room than this is almost full here, so that a small one can be filled; the default is 256 MiB.
pub const MIN_FREE: u64 = 64 << 20;

/// What the members' config says beyond the usual.
pub fn more_config() -> String {
    let journal = format!("[journal]\nmin_free_bytes = {MIN_FREE}\n");
    match has_leases() {
        true => format!(
            "{journal}[leader_election]\nlease_ttl_s = {}\nrenew_interval_s = {}\n",
            TTL.as_secs(),
            RENEW.as_secs()
        ),
        false => journal,
    }
}

/// See the module.
pub struct Trial {
    /// The members.
    pub members: Members,
    /// Times that were taken.
    pub measured: Vec<Measured>,
    name: &'static str,
    expected: Option<Expected>,
    step: Option<Step>,
    watch: Option<Watch>,
    gaps: Vec<(Duration, Duration)>,
}

/// What goes on under one fault.
struct Step {
    what: String,
    searches: Option<Searches>,
    began: Instant,
    /// A member was started again: others may take it for alive by what its earlier process said, until they hear that
    /// there is another, and then know nothing of it for a moment.
    heard_anew: bool,
}

/// When a change had been seen.
struct Times {
    first: Option<Duration>,
    all: Duration,
    answered: Duration,
}

impl Trial {
    /// A trial of members that are not started yet.
    pub fn new(name: &'static str, members: Members) -> Self {
        Self { members, measured: Vec::new(), name, expected: None, step: None, watch: None, gaps: Vec::new() }
    }

    /// Starts the members and fills an index.
    pub async fn begin(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        self.members.start().await?;
        self.measure("from the first process to a whole mesh", began.elapsed());
        let began = Instant::now();
        let documents = self.members.load().await?;
        self.measure(format!("loading {documents} documents"), began.elapsed());
        let copies = Arc::new(self.members.copies().await?);
        let (total, missing) = searches::search(&mut self.members.client(0)).await?;
        ensure!(total > 20 && missing.is_empty(), "{total} hits to begin with, without shards {missing:?}");
        self.expected = Some(Expected { total, copies });
        Ok(())
    }

    /// Keeps a time.
    pub fn measure(&mut self, what: impl Into<String>, time: Duration) {
        let measured = Measured::new(what, time);
        say(&format!("{}: {:>6} ms  {}", self.name, measured.ms, measured.what));
        self.measured.push(measured);
    }

    /// Says something about this trial.
    pub fn tell(&self, what: &str) {
        say(&format!("{}: {what}", self.name));
    }

    /// All members.
    pub fn all(&self) -> Vec<usize> {
        (0..self.members.count()).collect()
    }

    /// All members but some.
    pub fn others(&self, than: &[usize]) -> Vec<usize> {
        self.all().into_iter().filter(|m| !than.contains(m)).collect()
    }

    /// A majority, and the rest with `first` among it.
    pub fn halves(&self, first: usize) -> (Vec<usize>, Vec<usize>) {
        let size = (self.members.count() - 1) / 2;
        let minority: Vec<usize> = [first].into_iter().chain(self.others(&[first])).take(size).collect();
        (self.others(&minority), minority)
    }

    // Steps: what members see of each other, and how they answer.

    /// Under these faults of links alone every member must see what follows from them, and answer as it then can.
    pub async fn under(&mut self, what: &str, faults: Faults) -> anyhow::Result<()> {
        self.step(what, &self.members.running())?;
        self.members.set(faults).await?;
        self.seen().await
    }

    /// No faults of links any more.
    pub async fn heal(&mut self) -> anyhow::Result<()> {
        self.under("healed", Faults::none()).await
    }

    /// Begins a step, with searches at `asked`; what follows changes the members.
    pub fn step(&mut self, what: &str, asked: &[usize]) -> anyhow::Result<()> {
        let expected = self.expected.as_ref().context("an index was filled")?;
        let searches = (!asked.is_empty()).then(|| Searches::begin(&self.members, asked, expected));
        self.step = Some(Step { what: what.to_owned(), searches, began: Instant::now(), heard_anew: false });
        Ok(())
    }

    /// Within a step: starts a member's sidecar again.
    pub fn restart(&mut self, member: usize) -> anyhow::Result<()> {
        self.step.as_mut().context("a step was begun")?.heard_anew = true;
        self.members.restart(member)
    }

    /// Waits until every member of `among` tells that the disk of one is almost full, or that it is not, and its metrics say so.
    pub async fn disk_is_full(&self, of: usize, among: &[usize], full: bool) -> anyhow::Result<()> {
        let until = Instant::now() + NOTICED;
        let metric = format!("miroir_disk_full {}", u8::from(full));
        for at in among {
            loop {
                let topology = self.members.ask(*at, "/_miroir/topology").await?;
                let entries = topology["members"].as_array().context("expected members in the topology")?;
                let told = entries.iter().find(|m| m["id"] == self.members.name(of)).map(|m| &m["diskFull"]);
                let metrics = self.members.metrics(of).get("/metrics").await?.success()?;
                let metrics = String::from_utf8_lossy(&metrics.body);
                let line = metrics.lines().find(|line| line.starts_with("miroir_disk_full"));
                if told.is_some_and(|told| *told == full) && line == Some(&*metric) {
                    break;
                }
                let (name, of) = (self.members.name(*at), self.members.name(of));
                ensure!(Instant::now() < until, "{name} says diskFull {told:?} of {of}, which says {line:?}");
                sleep(LOOK_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Ends a step: waits until every member that runs sees what there is, holds that for a while, and ends the searches.
    pub async fn seen(&mut self) -> anyhow::Result<()> {
        let Some(Step { what, searches, began, heard_anew }) = self.step.take() else { bail!("a step was begun") };
        let seen = self.wait_until_seen(&what, began, heard_anew).await;
        // What is wrong with searches tells more.
        let tally = match searches {
            Some(searches) => Some(searches.end().await.with_context(|| what.clone())?),
            None => None,
        };
        seen?;
        if let Some(tally) = tally {
            let (done, partial) = (tally.done, tally.partial);
            self.measure(format!("{what}: the slowest of {done} searches ({partial} partial)"), tally.slowest);
        }
        Ok(())
    }

    async fn wait_until_seen(&mut self, what: &str, began: Instant, heard_anew: bool) -> anyhow::Result<()> {
        let pictures = self.members.pictures();
        let seen = pictures.read();
        let (now, before) = (seen.now.clone(), seen.before.first().cloned().unwrap_or_default());
        let grew = self.all().iter().any(|m| !now.suspects(*m, self.members.count()).is_empty());
        let until = began + if grew { NOTICED } else { HEALED };
        let times = loop {
            let times = self.first_seen(what, began, until, &now, &before).await?;
            if !heard_anew {
                pictures.settled();
            }
            match self.stays_seen(&now).await {
                None => break times,
                Some(_) if heard_anew && Instant::now() < until => {}
                Some(why) => bail!("{what}: no longer seen, after it was seen by all: {why}"),
            }
        };
        pictures.settled();
        if before != now || heard_anew {
            if let Some(first) = times.first {
                self.measure(format!("{what}: seen by the first member"), first);
            }
            self.measure(format!("{what}: seen by every member"), times.all);
            self.measure(format!("{what}: answered accordingly by every member"), times.answered);
        }
        let dead = self.members.found_dead();
        ensure!(dead.is_empty(), "{what}: {}", dead.join("; "));
        Ok(())
    }

    /// Waits until every member that runs sees what there is, and answers accordingly.
    async fn first_seen(
        &self,
        what: &str,
        began: Instant,
        until: Instant,
        now: &Picture,
        before: &Picture,
    ) -> anyhow::Result<Times> {
        let within = (until - began).as_secs();
        let mut first = None;
        loop {
            let views = self.views().await;
            let changed = |(m, view): (&usize, &anyhow::Result<BTreeSet<usize>>)| {
                view.as_ref().is_ok_and(|view| *view != before.suspects(*m, self.members.count()))
            };
            if first.is_none() && views.iter().any(changed) {
                first = Some(began.elapsed());
            }
            match self.unlike(&views, now) {
                None => break,
                Some(why) if Instant::now() > until => bail!("{what}: not seen within {within} s: {why}"),
                Some(_) => sleep(LOOK_INTERVAL).await,
            }
        }
        let all = began.elapsed();
        // A member that is no suspect any more may not be asked yet: its data connection is still to come.
        while let Err(why) = self.answers_match(now).await {
            ensure!(Instant::now() < until, "{what}: not answered so within {within} s: {why:#}");
            sleep(LOOK_INTERVAL).await;
        }
        Ok(Times { first, all, answered: began.elapsed() })
    }

    /// Whether it stays so for a while; otherwise what a member sees instead.
    async fn stays_seen(&self, now: &Picture) -> Option<String> {
        let steady = Instant::now();
        while steady.elapsed() < STEADY {
            if let Some(why) = self.unlike(&self.views().await, now) {
                return Some(format!("{why} ({:?} later)", steady.elapsed()));
            }
            sleep(LOOK_INTERVAL).await;
        }
        None
    }

    /// Whom each member that runs suspects.
    async fn views(&self) -> BTreeMap<usize, anyhow::Result<BTreeSet<usize>>> {
        let running = self.members.running();
        join_all(running.iter().map(async |m| (*m, self.members.suspects(*m).await))).await.into_iter().collect()
    }

    /// The first member that sees something else than what there is.
    fn unlike(&self, views: &BTreeMap<usize, anyhow::Result<BTreeSet<usize>>>, picture: &Picture) -> Option<String> {
        views.iter().find_map(|(member, view)| {
            let expected = picture.suspects(*member, self.members.count());
            let names = |of: &BTreeSet<usize>| self.members.names(&of.iter().copied().collect::<Vec<_>>());
            match view {
                Ok(view) if *view == expected => None,
                Ok(view) => Some(format!(
                    "{} suspects [{}], not [{}]",
                    self.members.name(*member),
                    names(view),
                    names(&expected)
                )),
                Err(e) => Some(format!("{e:#}")),
            }
        })
    }

    /// Whether a search at every member that runs lacks exactly the shards that it must lack.
    async fn answers_match(&self, picture: &Picture) -> anyhow::Result<()> {
        let expected = self.expected.as_ref().context("an index was filled")?;
        let running = self.members.running();
        let search = async |m: &usize| searches::search(&mut self.members.client(*m)).await;
        for (member, found) in running.iter().zip(join_all(running.iter().map(search)).await) {
            let (total, missing) = found?;
            let must = picture.missing(*member, &expected.copies);
            let name = self.members.name(*member);
            ensure!(missing == must, "{name} answers without shards {missing:?}, not {must:?}");
            ensure!(!missing.is_empty() || total == expected.total, "{name} finds {total}, not {}", expected.total);
        }
        Ok(())
    }

    /// Whether TCP passes between two hosts is as said, both ways.
    pub fn tcp_passes(&self, a: usize, b: usize, passes: bool) -> anyhow::Result<()> {
        for (from, to) in [(a, b), (b, a)] {
            let found = self.members.tcp_connects(from, to)?;
            ensure!(found == passes, "TCP from host {} to {}: {found}, not {passes}", from + 1, to + 1);
        }
        Ok(())
    }

    // Leases: who leads.

    /// Begins to watch who leads, and waits until each standing scope has one leader that all members name.
    pub async fn watch_leaders(&mut self) -> anyhow::Result<()> {
        self.watch = Some(Watch::begin(&self.members));
        self.gap(FAILOVER)?;
        let all = self.all();
        let took = self.one_leader_each(&all, FAILOVER).await?;
        self.measure("from a whole mesh to leaders of all standing scopes", took);
        Ok(())
    }

    /// From now on, for so long, scopes may be without a leader.
    pub fn gap(&mut self, length: Duration) -> anyhow::Result<()> {
        let now = self.now()?;
        self.gaps.push((now, now + length));
        Ok(())
    }

    /// The last gap ends now.
    pub fn gap_is_over(&mut self) -> anyhow::Result<()> {
        let now = self.now()?;
        self.gaps.last_mut().context("a gap was begun")?.1 = now;
        Ok(())
    }

    /// Now, on the clock of those who watch leaders.
    pub fn now(&self) -> anyhow::Result<Duration> {
        Ok(self.watch.as_ref().context("leaders are watched")?.now())
    }

    /// Who leads a scope.
    pub fn leader(&self, scope: &str) -> anyhow::Result<usize> {
        let look = self.watch.as_ref().and_then(Watch::last).context("leaders are watched")?;
        let leaders: Vec<usize> = look.leaders.get(scope).into_iter().flatten().copied().collect();
        match leaders[..] {
            [one] => Ok(one),
            _ => bail!("{scope} is led by [{}]", self.members.names(&leaders)),
        }
    }

    /// Waits until one of `among` leads each standing scope, and all of `among` say so; how long it took.
    pub async fn one_leader_each(&mut self, among: &[usize], within: Duration) -> anyhow::Result<Duration> {
        let began = Instant::now();
        while let Err(why) = self.agree(among).await {
            ensure!(began.elapsed() < within, "no agreed leaders within {} s: {why:#}", within.as_secs());
            sleep(LOOK_INTERVAL).await;
        }
        Ok(began.elapsed())
    }

    async fn agree(&self, among: &[usize]) -> anyhow::Result<()> {
        let answers = join_all(among.iter().map(|m| self.members.ask(*m, "/_miroir/leases"))).await;
        for scope in STANDING {
            let leader = self.leader(scope)?;
            ensure!(among.contains(&leader), "{scope} is led by {}", self.members.name(leader));
            let mut epochs = BTreeSet::new();
            for (member, answer) in among.iter().zip(&answers) {
                let answer = answer.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?;
                let lease = lease(answer, scope)?;
                let name = self.members.name(*member);
                ensure!(lease.holder == leader, "{name} names m{} as the holder of {scope}", lease.holder + 1);
                ensure!(
                    lease.held_here == (*member == leader),
                    "{name} says heldHere = {} of {scope}",
                    lease.held_here
                );
                epochs.insert(lease.epoch);
            }
            ensure!(epochs.len() == 1, "{scope} is in epochs {epochs:?}");
        }
        Ok(())
    }

    /// For so long, the leaders of the standing scopes stay who they are.
    pub async fn leaders_stay(&mut self, length: Duration) -> anyhow::Result<()> {
        let leaders = STANDING.map(|scope| self.leader(scope).ok());
        let from = self.now()?;
        sleep(length).await;
        let looks = self.watch.as_ref().map(Watch::looks).unwrap_or_default();
        for (scope, leader) in STANDING.iter().zip(leaders) {
            for look in looks.iter().filter(|look| look.from > from) {
                let others: Vec<usize> =
                    look.leaders.get(*scope).into_iter().flatten().copied().filter(|m| Some(*m) != leader).collect();
                ensure!(others.is_empty(), "{scope} went over to {}", self.members.names(&others));
            }
        }
        Ok(())
    }

    /// None of `members` has led anything from then until now.
    pub fn led_nothing(&self, members: &[usize], from: Duration) -> anyhow::Result<()> {
        for look in self.watch.as_ref().map(Watch::looks).unwrap_or_default().iter().filter(|look| look.from >= from) {
            for (scope, leaders) in &look.leaders {
                if let Some(member) = members.iter().find(|m| leaders.contains(m)) {
                    bail!(
                        "{} led {scope} {:?} after it could not any more",
                        self.members.name(*member),
                        look.from - from
                    );
                }
            }
        }
        Ok(())
    }

    /// None of `members` became the holder of anything between two instants of [`boottime_us`].
    pub fn became_nothing(&self, members: &[usize], from_us: u64, to_us: u64) -> anyhow::Result<()> {
        for holding in self.holdings()? {
            let its = members.iter().any(|m| self.members.name(*m) == holding.member);
            let began = holding.from_us > from_us && holding.from_us < to_us;
            ensure!(!(its && began), "{} became the holder of {}", holding.member, holding.scope);
        }
        Ok(())
    }

    // Operations: the flip of an alias.

    /// Makes an alias of the index that is searched, and another index.
    pub async fn make_alias(&self) -> anyhow::Result<()> {
        let mut client = self.members.client(0);
        let made = client.json(Method::POST, "/indexes", &json!({"uid": OTHER, "primaryKey": "id"})).await?;
        wait_for_task(&mut client, task_uid(&made.success()?.json()?)?).await?;
        self.members.tell(0, Method::POST, "/_miroir/aliases", &json!({"name": ALIAS, "index": INDEX})).await.map(drop)
    }

    /// Asks a member to flip the alias; the operation's id.
    pub async fn flip_alias(&self, member: usize) -> anyhow::Result<String> {
        let path = format!("/_miroir/aliases/{ALIAS}");
        let begun = self.members.tell(member, Method::PUT, &path, &json!({"index": OTHER})).await?;
        begun["operation"].as_str().map(str::to_owned).with_context(|| format!("no operation in {begun}"))
    }

    /// Waits until the flip is in its last phase; who leads it then and under which epoch, as a member knows.
    pub async fn leader_of_flip(&self, member: usize, id: &str) -> anyhow::Result<(usize, u64)> {
        let until = Instant::now() + FAILOVER;
        loop {
            let operation = self.members.ask(member, &format!("/_miroir/operations/{id}")).await?;
            if operation["phase"] == "confirm" && operation["state"] == "running" {
                let leases = self.members.ask(member, "/_miroir/leases").await?;
                let lease = lease(&leases, &format!("alias_flip:{ALIAS}"))?;
                return Ok((lease.holder, lease.epoch));
            }
            ensure!(Instant::now() < until, "the flip does not wait for who is away: {operation}");
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until the members know the flip to be done: each phase entered once, the alias flipped once.
    pub async fn flip_is_done(&self, among: &[usize], id: &str, until: Instant) -> anyhow::Result<()> {
        for member in among {
            let name = self.members.name(*member).to_owned();
            let operation = loop {
                let operation = self.members.ask(*member, &format!("/_miroir/operations/{id}")).await?;
                if operation["state"] == "done" {
                    break operation;
                }
                ensure!(Instant::now() < until, "{name} does not know the flip to be done: {operation}");
                sleep(LOOK_INTERVAL).await;
            };
            let history = operation["history"].as_array().context("expected `history`")?;
            let phases: Vec<&str> = history.iter().filter_map(|h| h["phase"].as_str()).collect();
            let once: BTreeSet<&str> = phases.iter().copied().collect();
            ensure!(phases.len() == once.len() && phases.last() == Some(&"done"), "{name}: {phases:?}");
            let alias = self.members.ask(*member, &format!("/_miroir/aliases/{ALIAS}")).await?;
            let former = alias["history"].as_array().map(Vec::len);
            ensure!(alias["index"] == OTHER && former == Some(1), "{name}: {alias}");
        }
        Ok(())
    }

    /// An order that `former` has given under `epoch` for the flip comes to these members only now: each refuses it.
    pub async fn is_refused(&self, former: usize, epoch: u64, id: &str, by: &[usize]) -> anyhow::Result<()> {
        let mesh = self.members.ask(by[0], "/_miroir/mesh").await?;
        let mesh = mesh["mesh"].as_str().context("expected `mesh`")?;
        let order = forged::confirm(ALIAS, epoch, id)?;
        let answers = self.members.send_as(former, mesh, by, &order).await?;
        for (answer, member) in answers.into_iter().zip(by) {
            let refused = matches!(&answer, Err(CallError::Refused { refusal: Refusal::StaleOrder(_), .. }));
            ensure!(refused, "{} answered a stale order with {answer:?}", self.members.name(*member));
        }
        Ok(())
    }

    /// By the members' own logs another one has held the scope after `first`, which has not held it again.
    pub fn led_one_after_the_other(&mut self, scope: &str, first: usize) -> anyhow::Result<()> {
        let mut held: Vec<Holding> = self.holdings()?.into_iter().filter(|h| h.scope == scope).collect();
        held.sort_by_key(|h| h.epoch);
        let who: Vec<&str> = held.iter().map(|h| &*h.member).collect();
        let first = self.members.name(first);
        let began =
            who.iter().position(|m| *m == first).with_context(|| format!("{first} never held {scope}: {who:?}"))?;
        ensure!(who.len() > began + 1 && !who[began + 1..].contains(&first), "{scope} was held by {who:?}");
        Ok(())
    }

    fn holdings(&self) -> anyhow::Result<Vec<Holding>> {
        let logs = self.members.logs()?;
        holdings::read(logs.iter().map(|(member, log)| (&**member, &**log)))
    }

    /// What must be so whatever was tried: no process died by itself or panicked, and leases were never held twice.
    pub fn end(&mut self) -> anyhow::Result<()> {
        let mut faults = self.members.found_dead();
        for (member, log) in self.members.logs()? {
            let panics = log.lines().filter(|line| line.contains("panicked at"));
            faults.extend(panics.map(|line| format!("{member}: {line}")));
        }
        if let Some(watch) = self.watch.take() {
            let looks = watch.looks();
            faults.extend(leaders::faults(&looks, &self.gaps));
            self.measure("the longest time that a scope was without a leader", leaders::longest_gap(&looks));
            let holdings = self.holdings()?;
            ensure!(!holdings.is_empty(), "members lead, but their logs tell of no holdings");
            faults.extend(holdings::faults(&holdings));
            say(&format!("{}: {} holdings in the members' logs", self.name, holdings.len()));
        }
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    }
}

/// One entry of `GET /_miroir/leases`.
#[derive(Debug, PartialEq, Eq)]
struct Lease {
    holder: usize,
    epoch: u64,
    held_here: bool,
}

fn lease(answer: &Value, scope: &str) -> anyhow::Result<Lease> {
    let leases = answer["leases"].as_array().context("expected `leases`")?;
    let lease =
        leases.iter().find(|lease| lease["scope"] == scope).with_context(|| format!("{scope} is not listed"))?;
    Ok(Lease {
        holder: number(&lease["holder"])?,
        epoch: lease["epoch"].as_u64().context("expected a number `epoch`")?,
        held_here: lease["heldHere"].as_bool().context("expected a boolean `heldHere`")?,
    })
}

/// Microseconds of CLOCK_BOOTTIME, to a hundredth of a second.
pub fn boottime_us() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/uptime").context("can't read /proc/uptime")?;
    let seconds: f64 = text.split(' ').next().and_then(|s| s.parse().ok()).context("/proc/uptime has no number")?;
    Ok(u64::try_from(Duration::try_from_secs_f64(seconds)?.as_micros())?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn leases_are_read_as_members_tell_them() {
        let answer = json!({"leases": [
            {"scope": "ilm", "holder": "m2", "epoch": 3, "expiresAt": "x", "heldHere": false},
            {"scope": "task_ids", "holder": "m1", "epoch": 9, "expiresAt": "x", "heldHere": true},
        ]});
        assert_eq!(lease(&answer, "task_ids").unwrap(), Lease { holder: 0, epoch: 9, held_here: true });
        assert_eq!(lease(&answer, "membership").unwrap_err().to_string(), "membership is not listed");
        assert!(lease(&json!({}), "ilm").is_err());
    }

    #[test]
    fn members_config_is_one_that_this_build_takes() {
        let keys = miroir::config::KEYS;
        let has = |name: &str| keys.iter().any(|key| key.section == "leader_election" && key.key == name);
        let config = more_config();
        assert_eq!(config.contains("lease_ttl_s = 4"), has("lease_ttl_s"));
        assert_eq!(config.contains("renew_interval_s = 1"), has("renew_interval_s"));
    }

    #[test]
    fn boottime_goes_on() {
        let first = boottime_us().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        let passed = boottime_us().unwrap() - first;
        assert!((10_000..5_000_000).contains(&passed), "{passed}");
    }
}
