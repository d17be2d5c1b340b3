//! The scenarios, each as it would be told.
//!
//! Must not know: how faults are made, how members are asked.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::time::{Instant, sleep};

use super::faults::Faults;
use super::trial::{FAILOVER, HEALED_LEADERS, MIN_FREE, TTL, Trial, boottime_us};
use super::writes::Writes;

/// Within 5 s of a cut, writes go on; twice that, for machines that are shared.
const WRITES_GO_ON: Duration = Duration::from_secs(10);

/// Preferred primaries return one after the other, every 10 s; twice that for the first, and more for the picture to settle.
const GIVEN_BACK: Duration = Duration::from_secs(30);

/// A scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it tries.
    pub about: &'static str,
    /// Whether it belongs to `ci`.
    pub ci: bool,
    /// Whether it is about leases.
    pub leases: bool,
    /// It.
    pub run: for<'a> fn(&'a mut Trial) -> LocalBoxFuture<'a, anyhow::Result<()>>,
}

/// All, in the order in which `all` runs them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "links",
        about: "cut in many ways, every member suspects exactly whom it must, and searches go on",
        ci: true,
        leases: false,
        run: |t| Box::pin(links(t)),
    },
    Scenario {
        name: "processes",
        about: "a member is paused, killed, stopped; all are killed at once: suspected, searched around, back",
        ci: true,
        leases: false,
        run: |t| Box::pin(processes(t)),
    },
    Scenario {
        name: "majority",
        about: "halves are cut apart: the majority leads everything, the minority nothing",
        ci: true,
        leases: true,
        run: |t| Box::pin(majority(t)),
    },
    Scenario {
        name: "one-way",
        about: "a leader hears everybody, but nobody hears it: it is replaced",
        ci: true,
        leases: true,
        run: |t| Box::pin(one_way(t)),
    },
    Scenario {
        name: "pause",
        about: "a leader is stopped for longer than its lease and goes on: it leads nothing any more",
        ci: true,
        leases: true,
        run: |t| Box::pin(pause(t)),
    },
    Scenario {
        name: "stale-leader",
        about: "who leads an alias's flip is stopped for longer than its lease and goes on: the flip is made once",
        ci: true,
        leases: true,
        run: |t| Box::pin(stale_leader(t)),
    },
    Scenario {
        name: "triangle",
        about: "a leader and another member don't reach each other, both reach the rest: nothing changes",
        ci: false,
        leases: true,
        run: |t| Box::pin(triangle(t)),
    },
    Scenario {
        name: "leader-cut",
        about: "a leader's host is cut off: it is replaced, and one leads after healing",
        ci: false,
        leases: true,
        run: |t| Box::pin(leader_cut(t)),
    },
    Scenario {
        name: "udp",
        about: "UDP is blocked between halves, TCP is not: as if they were cut apart",
        ci: false,
        leases: true,
        run: |t| Box::pin(udp(t)),
    },
    Scenario {
        name: "loss",
        about: "one packet in ten is lost: leaders stay",
        ci: false,
        leases: true,
        run: |t| Box::pin(loss(t)),
    },
    Scenario {
        name: "leader-killed",
        about: "a leader is killed, replaced, and started again",
        ci: false,
        leases: true,
        run: |t| Box::pin(leader_killed(t)),
    },
    Scenario {
        name: "all-restarted",
        about: "all members are killed at once and started again: everything is led again",
        ci: false,
        leases: true,
        run: |t| Box::pin(all_restarted(t)),
    },
    Scenario {
        name: "release",
        about: "a leader is told to end: it hands over before its lease is over",
        ci: false,
        leases: true,
        run: |t| Box::pin(release(t)),
    },
    Scenario {
        name: "primary-cut",
        about: "the primary of most shards is cut off, with clients on both sides: replaced, and it commits nothing",
        ci: true,
        leases: true,
        run: |t| Box::pin(primary_cut(t)),
    },
    Scenario {
        name: "one-way-writes",
        about: "a follower does not hear its primary, or the primary the follower: writes go on without one of them",
        ci: false,
        leases: true,
        run: |t| Box::pin(one_way_writes(t)),
    },
    Scenario {
        name: "partial-writes",
        about: "a primary and a follower don't reach each other, then the primary only one other: writes go on",
        ci: false,
        leases: true,
        run: |t| Box::pin(partial_writes(t)),
    },
    Scenario {
        name: "full-disk",
        about: "a primary's disk fills up, then all at once: others take over, searches go on, it comes back",
        ci: true,
        leases: true,
        run: |t| Box::pin(full_disk(t)),
    },
];

async fn links(t: &mut Trial) -> anyhow::Result<()> {
    let (a, b) = (0, 1);
    let (majority, minority) = t.halves(t.members.count() - 1);
    let (left, right) = (majority[0], minority[0]);
    t.under("nothing is wrong", Faults::none()).await?;
    t.tcp_passes(left, right, true)?;

    t.under("two cut apart, both see the rest", Faults::none().between(&[a], &[b])).await?;
    t.heal().await?;
    t.under("one is not heard by another", Faults::none().one_way(a, &[b])).await?;
    t.heal().await?;
    t.under("one is heard by nobody", Faults::none().one_way(a, &t.others(&[a]))).await?;
    t.heal().await?;
    t.under("one host is cut off", Faults::none().between(&[b], &t.others(&[b]))).await?;
    t.heal().await?;
    t.under("halves are cut apart", Faults::none().between(&majority, &minority)).await?;
    t.tcp_passes(left, right, false)?;
    t.under("the cut moves to another member", Faults::none().between(&[a], &t.others(&[a]))).await?;
    t.heal().await?;
    t.tcp_passes(left, right, true)?;
    t.under("halves without UDP between them", Faults::none().udp_between(&majority, &minority)).await?;
    t.tcp_passes(left, right, true)?;
    t.heal().await?;
    t.under("one packet in ten is lost", Faults::none().loss(10)).await?;
    t.heal().await
}

async fn processes(t: &mut Trial) -> anyhow::Result<()> {
    let (paused, killed, stopped) = (1, 2, t.members.count() - 1);
    t.step("one is paused", &t.others(&[paused]))?;
    t.members.pause(paused)?;
    t.seen().await?;
    t.step("the paused one goes on", &t.others(&[paused]))?;
    t.members.resume(paused)?;
    t.seen().await?;

    t.step("one is killed", &t.others(&[killed]))?;
    t.members.kill(killed).await?;
    t.seen().await?;
    t.step("the killed one is started again", &t.others(&[killed]))?;
    t.restart(killed)?;
    t.seen().await?;

    t.step("one is told to end", &t.others(&[stopped]))?;
    let began = Instant::now();
    t.members.stop(stopped).await?;
    t.measure("from SIGTERM to its end", began.elapsed());
    t.seen().await?;
    t.step("the one that ended is started again", &t.others(&[stopped]))?;
    t.restart(stopped)?;
    t.seen().await?;

    t.step("all are killed and started again", &[])?;
    for member in t.all() {
        t.members.kill(member).await?;
    }
    for member in t.all() {
        t.restart(member)?;
    }
    t.seen().await
}

async fn majority(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    let (majority, minority) = t.halves(t.leader("membership")?);
    apart(t, "halves are cut apart", Faults::none().between(&majority, &minority), &majority, &minority).await
}

async fn udp(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    let (majority, minority) = t.halves(t.leader("membership")?);
    let faults = Faults::none().udp_between(&majority, &minority);
    apart(t, "halves without UDP between them", faults, &majority, &minority).await
}

async fn leader_cut(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    let leader = t.leader("membership")?;
    let others = t.others(&[leader]);
    apart(t, "the leader is cut off", Faults::none().between(&[leader], &others), &others, &[leader]).await
}

async fn one_way(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    let leader = t.leader("membership")?;
    let others = t.others(&[leader]);
    apart(t, "nobody hears the leader", Faults::none().one_way(leader, &others), &others, &[leader]).await
}

/// Those left in the majority lead everything soon; the rest leads nothing after its leases, and elects nobody; after
/// healing all agree again.
async fn apart(
    t: &mut Trial,
    what: &str,
    faults: Faults,
    majority: &[usize],
    minority: &[usize],
) -> anyhow::Result<()> {
    t.gap(FAILOVER)?;
    let (from, from_us) = (t.now()?, boottime_us()?);
    t.under(what, faults).await?;
    t.one_leader_each(majority, FAILOVER).await?;
    let agreed = t.now()?.saturating_sub(from);
    t.measure(format!("{what}: the majority leads everything"), agreed);
    anyhow::ensure!(agreed < FAILOVER, "{what}: it took {agreed:?} until the majority led everything");
    t.leaders_stay(TTL * 2).await?;
    t.led_nothing(minority, from + TTL)?;
    t.became_nothing(minority, from_us, boottime_us()?)?;
    t.heal().await?;
    let all = t.all();
    let took = t.one_leader_each(&all, HEALED_LEADERS).await?;
    t.measure("healed: all agree who leads", took);
    t.leaders_stay(TTL).await
}

async fn triangle(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    let leader = t.leader("membership")?;
    let other = t.others(&[leader])[0];
    let all = t.all();
    t.under("the leader and another are cut apart", Faults::none().between(&[leader], &[other])).await?;
    t.leaders_stay(TTL * 3).await?;
    t.one_leader_each(&all, TTL).await?;
    t.heal().await?;
    t.leaders_stay(TTL).await?;
    t.one_leader_each(&all, TTL).await.map(drop)
}

async fn pause(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    let leader = t.leader("membership")?;
    let others = t.others(&[leader]);
    t.gap(FAILOVER)?;
    let began = Instant::now();
    t.step("the leader is paused", &others)?;
    t.members.pause(leader)?;
    t.seen().await?;
    t.one_leader_each(&others, FAILOVER).await?;
    t.measure("paused: the others lead everything", began.elapsed());
    anyhow::ensure!(began.elapsed() < FAILOVER, "it took {:?} until the others led everything", began.elapsed());
    sleep((TTL * 2).saturating_sub(began.elapsed())).await;
    let from = t.now()?;
    t.step("the old leader goes on", &others)?;
    t.members.resume(leader)?;
    t.seen().await?;
    t.led_nothing(&[leader], from)?;
    let all = t.all();
    t.one_leader_each(&all, TTL * 2).await?;
    t.leaders_stay(TTL).await
}

/// The leader of a flip is stopped while it waits for a member that can't confirm, and goes on when another has finished the
/// flip. What it had ordered comes to the others only then, and is refused.
async fn stale_leader(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    t.make_alias().await?;
    let away = t.members.count() - 1;
    t.gap(FAILOVER)?;
    t.step("one is paused", &t.others(&[away]))?;
    t.members.pause(away)?;
    t.seen().await?;

    t.gap(FAILOVER)?;
    let flip = t.flip_alias(0).await?;
    let (leader, epoch) = t.leader_of_flip(0, &flip).await?;
    anyhow::ensure!(leader != away, "{} leads although it is paused", t.members.name(leader));
    let others = t.others(&[away, leader]);
    let began = Instant::now();
    t.step("who leads a flip is paused", &others)?;
    t.members.pause(leader)?;
    t.seen().await?;
    t.flip_is_done(&others, &flip, began + FAILOVER * 2).await?;
    t.measure("paused: another has finished the flip", began.elapsed());
    t.one_leader_each(&others, FAILOVER).await?;
    sleep((TTL * 2).saturating_sub(began.elapsed())).await;
    t.is_refused(leader, epoch, &flip, &others).await?;

    t.step("both go on", &others)?;
    t.members.resume(leader)?;
    t.members.resume(away)?;
    t.seen().await?;
    let all = t.all();
    t.one_leader_each(&all, TTL * 2).await?;
    t.leaders_stay(TTL).await?;
    t.flip_is_done(&all, &flip, Instant::now() + TTL).await?;
    t.led_one_after_the_other(&format!("alias_flip:{}", super::trial::ALIAS), leader)
}

async fn loss(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    t.under("one packet in ten is lost", Faults::none().loss(10)).await?;
    t.leaders_stay(TTL * 5).await?;
    let all = t.all();
    t.one_leader_each(&all, TTL).await?;
    t.heal().await
}

async fn leader_killed(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    let leader = t.leader("membership")?;
    let others = t.others(&[leader]);
    t.gap(FAILOVER)?;
    let began = Instant::now();
    t.step("the leader is killed", &others)?;
    t.members.kill(leader).await?;
    t.one_leader_each(&others, FAILOVER).await?;
    t.measure("killed: the others lead everything", began.elapsed());
    t.seen().await?;
    t.step("the old leader is started again", &others)?;
    t.restart(leader)?;
    t.seen().await?;
    let all = t.all();
    t.one_leader_each(&all, TTL * 2).await?;
    t.leaders_stay(TTL).await
}

async fn all_restarted(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    // Until they all run again there is no bound; what counts begins there.
    t.gap(Duration::from_secs(60))?;
    t.step("all are killed and started again", &[])?;
    let began = Instant::now();
    for member in t.all() {
        t.members.kill(member).await?;
    }
    for member in t.all() {
        t.restart(member)?;
    }
    t.members.whole().await?;
    t.measure("from the kill to a whole mesh", began.elapsed());
    let all = t.all();
    let took = t.one_leader_each(&all, FAILOVER).await?;
    t.measure("from there to leaders of all standing scopes", took);
    t.gap_is_over()?;
    t.seen().await?;
    t.leaders_stay(TTL).await
}

async fn release(t: &mut Trial) -> anyhow::Result<()> {
    t.watch_leaders().await?;
    let leader = t.leader("membership")?;
    let others = t.others(&[leader]);
    t.gap(FAILOVER)?;
    t.step("the leader is told to end", &others)?;
    let began = Instant::now();
    t.members.stop(leader).await?;
    t.measure("from SIGTERM to its end", began.elapsed());
    // A lease that was not released would last for TTL more.
    let took = t.one_leader_each(&others, TTL / 2).await?;
    t.measure("from its end to the next leaders", took);
    t.seen().await?;
    t.step("the old leader is started again", &others)?;
    t.restart(leader)?;
    t.seen().await?;
    let all = t.all();
    t.one_leader_each(&all, TTL * 2).await.map(drop)
}

/// Under these faults clients at `among` wait for no longer than promised, and go on after healing, at every member.
async fn writes_go_on(
    t: &mut Trial,
    writes: &Writes,
    what: &str,
    faults: Faults,
    among: &[usize],
) -> anyhow::Result<()> {
    let began = Instant::now();
    t.members.set(faults).await?;
    let set = Instant::now();
    writes.go_on(among, WRITES_GO_ON * 2).await?;
    // Long enough that a silent member is out of every set.
    sleep(WRITES_GO_ON.saturating_sub(began.elapsed())).await;
    writes.go_on(among, WRITES_GO_ON).await?;
    let gap = writes.gap(among, began);
    t.measure(format!("{what}: the longest pause of writes to a shard"), gap);
    let cut_off: Vec<usize> =
        t.all().into_iter().filter(|m| t.others(&[*m]).iter().all(|o| t.members.separated(*m, *o))).collect();
    for member in cut_off {
        let taken = writes.taken_by(member, set);
        anyhow::ensure!(taken == 0, "{what}: {taken} writes were acknowledged by {}", t.members.name(member));
    }
    let healed = Instant::now();
    t.members.set(Faults::none()).await?;
    let all = t.all();
    writes.go_on(&all, WRITES_GO_ON * 2).await?;
    writes.in_sync(&t.members, healed + WRITES_GO_ON * 4).await?;
    t.measure(format!("{what}: from healing to all copies in sync"), healed.elapsed());
    anyhow::ensure!(gap <= WRITES_GO_ON, "{what}: writes stood still for {gap:?}");
    Ok(())
}

async fn primary_cut(t: &mut Trial) -> anyhow::Result<()> {
    let writes = Writes::begin(&t.members).await?;
    writes.go_on(&t.all(), WRITES_GO_ON).await?;
    let primary = writes.primary_of_most(&t.members).await?;
    let others = t.others(&[primary]);
    let faults = Faults::none().between(&[primary], &others);
    writes_go_on(t, &writes, "a primary is cut off", faults, &others).await?;
    t.tell(&writes.end(&t.members).await?);
    Ok(())
}

async fn one_way_writes(t: &mut Trial) -> anyhow::Result<()> {
    let writes = Writes::begin(&t.members).await?;
    writes.go_on(&t.all(), WRITES_GO_ON).await?;
    let (primary, follower) = writes.primary_and_follower(&t.members).await?;
    let rest = t.others(&[primary, follower]);
    let faults = Faults::none().one_way(primary, &[follower]);
    writes_go_on(t, &writes, "a follower does not hear its primary", faults, &rest).await?;
    let (primary, follower) = writes.primary_and_follower(&t.members).await?;
    let rest = t.others(&[primary, follower]);
    let faults = Faults::none().one_way(follower, &[primary]);
    writes_go_on(t, &writes, "a primary does not hear its follower", faults, &rest).await?;
    t.tell(&writes.end(&t.members).await?);
    Ok(())
}

async fn partial_writes(t: &mut Trial) -> anyhow::Result<()> {
    let writes = Writes::begin(&t.members).await?;
    writes.go_on(&t.all(), WRITES_GO_ON).await?;
    let (primary, follower) = writes.primary_and_follower(&t.members).await?;
    let rest = t.others(&[primary, follower]);
    let faults = Faults::none().between(&[primary], &[follower]);
    writes_go_on(t, &writes, "a primary and a follower are cut apart", faults, &rest).await?;
    let (primary, follower) = writes.primary_and_follower(&t.members).await?;
    let others = t.others(&[primary, follower]);
    let away: Vec<usize> = others[1..].iter().copied().chain([follower]).collect();
    let faults = Faults::none().between(&[primary], &away);
    // Whoever does not reach a primary can't write what that one and the one in between hold.
    writes_go_on(t, &writes, "a primary reaches only one other", faults, &others[..1]).await?;
    t.tell(&writes.end(&t.members).await?);
    Ok(())
}

async fn full_disk(t: &mut Trial) -> anyhow::Result<()> {
    const DISK: u64 = 4 * MIN_FREE;
    let writes = Writes::begin(&t.members).await?;
    let all = t.all();
    writes.go_on(&all, WRITES_GO_ON).await?;
    let full = writes.primary_of_most(&t.members).await?;
    let others = t.others(&[full]);
    t.step("it gets a small disk", &others)?;
    t.members.stop(full).await?;
    t.members.give_disk(full, DISK).await?;
    t.restart(full)?;
    t.seen().await?;
    writes.in_sync(&t.members, Instant::now() + WRITES_GO_ON * 2).await?;
    // It has shards to lead again.
    writes.leads(&t.members, full, Instant::now() + GIVEN_BACK).await?;

    t.step("its disk is almost full", &all)?;
    let began = Instant::now();
    t.members.fill_disk(full, Some(DISK - MIN_FREE / 4 * 3)).await?;
    t.disk_is_full(full, &all, true).await?;
    writes.leaves(&t.members, full, Instant::now() + WRITES_GO_ON * 2).await?;
    writes.go_on(&all, WRITES_GO_ON).await?;
    t.seen().await?;
    let gap = writes.gap(&all, began);
    t.measure("its disk is almost full: the longest pause of writes to a shard", gap);
    anyhow::ensure!(gap <= WRITES_GO_ON, "writes stood still for {gap:?}");
    t.step("its disk has room again", &all)?;
    t.members.empty_disk(full)?;
    t.disk_is_full(full, &all, false).await?;
    writes.in_sync(&t.members, Instant::now() + WRITES_GO_ON * 2).await?;
    t.seen().await?;

    t.step("its disk is full all at once", &others)?;
    t.members.fill_disk(full, None).await?;
    let words = t.members.ends(full, WRITES_GO_ON).await?;
    anyhow::ensure!(words.contains("database or disk is full"), "it ended for another reason: {words}");
    writes.go_on(&others, WRITES_GO_ON).await?;
    t.seen().await?;
    t.step("it is started again with room", &others)?;
    t.members.empty_disk(full)?;
    t.restart(full)?;
    t.seen().await?;
    writes.in_sync(&t.members, Instant::now() + WRITES_GO_ON * 4).await?;
    t.tell(&writes.end(&t.members).await?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_different_and_none_is_a_group_of_scenarios() {
        let names: BTreeSet<&str> = SCENARIOS.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        assert!(!names.contains("all") && !names.contains("ci"));
        let ci: Vec<&str> = SCENARIOS.iter().filter(|s| s.ci).map(|s| s.name).collect();
        assert_eq!(
            ci,
            ["links", "processes", "majority", "one-way", "pause", "stale-leader", "primary-cut", "full-disk"]
        );
    }
}
