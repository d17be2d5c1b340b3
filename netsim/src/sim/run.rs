//! One run: first safety under faults, then everything is healed and progress is demanded.
//!
//! Must not know: how many runs there are, and who reads the trace.

use std::panic::{AssertUnwindSafe, catch_unwind};

use miroir::proto::env::Instant;
use miroir::types::{MemberState, RecordKey, VotersState};

use super::faults::majority_is_lost;
use super::network::Host;
use super::swarm::Swarm;
use super::trace::Trace;
use super::world::{KEYS, Stopped, World, key, name};

/// How long the healed world has to come to rest, in microseconds of true time: some voters are replaced only then, one
/// after the other, each after it has been silent for long enough.
const HEALING: u64 = 600_000_000;
/// How long a standing scope may be without a holder in a mesh at rest, in microseconds of true time: the TTL with its
/// margin on the slowest clock, a second, and a tenth for each rank.
const LEADING: u64 = 11_053_000 + 1_000_000 + 900_000;
/// How long operations under way may take in a mesh at rest, in microseconds of true time.
const FINISHING: u64 = 300_000_000;
/// How often the healed world is looked at.
const LOOK: u64 = 1_000_000;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All that was demanded.
    Passed(Passed),
    /// A property does not hold.
    Broken(String),
    /// After everything was whole again, this did not come about.
    Stuck(String),
    /// A panic.
    Crashed(String),
    /// The event up to which it was to go was reached.
    Until,
}

/// Numbers of a run that passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Events.
    pub events: u64,
    /// Changes that were answered with success.
    pub changes: u64,
    /// Flips whose end was held against what all members know.
    pub flips: u64,
    /// Voter lists that the mesh went through.
    pub lists: u64,
    /// True time in microseconds from healing to rest.
    pub healed_after: u64,
    /// Stores put back from copies, and those taken away again: see `world`.
    pub put_back: [u64; 2],
    /// The mesh could not come to rest: see `faults`.
    pub majority_lost: bool,
}

/// Runs one seed; gives the outcome and the number of its last event.
pub fn run(seed: u64, swarm: Option<Swarm>, trace: Trace, until: u64) -> (Outcome, u64) {
    let mut world = World::new(seed, swarm, trace, until);
    let outcome = catch_unwind(AssertUnwindSafe(|| phases(&mut world)));
    let event = world.event;
    // A trace that can't be written to its end has said so where it goes: the reader sees a shorter one.
    let _ = world.trace.flush();
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Outcome::Crashed(text.unwrap_or_else(|| "a panic without a text".to_owned()))
    });
    (outcome, event)
}

fn phases(world: &mut World) -> Outcome {
    let stopped = |stopped| match stopped {
        Stopped::Broken(broken) => Outcome::Broken(broken.to_string()),
        Stopped::Until => Outcome::Until,
    };
    let faults_end = world.swarm.faults_for;
    if let Err(stop) = world.run_to(faults_end).and_then(|()| world.heal()) {
        return stopped(stop);
    }
    let healed = world.now;
    loop {
        let next = world.now + LOOK;
        if let Err(stop) = world.claim_stores().and_then(|()| world.run_to(next)) {
            return stopped(stop);
        }
        match at_rest(world) {
            Ok(()) => break,
            Err(reason) if world.now - healed > HEALING => {
                if !majority_is_lost(world) {
                    return Outcome::Stuck(reason);
                }
                return Outcome::Passed(Passed { majority_lost: true, ..counted(world) });
            }
            Err(_) => {}
        }
    }
    let healed_after = world.now - healed;
    let rested = world.now;
    loop {
        let leaderless = world.leaderless();
        if leaderless.is_empty() {
            break;
        }
        if world.now - rested > LEADING {
            let who: Vec<String> = leaderless.iter().map(ToString::to_string).collect();
            return Outcome::Stuck(format!("nobody leads {}", who.join(", ")));
        }
        let next = world.now + LOOK / 10;
        if let Err(stop) = world.run_to(next) {
            return stopped(stop);
        }
    }
    while let Some(unfinished) = world.unfinished() {
        if world.now - rested > FINISHING {
            return Outcome::Stuck(unfinished);
        }
        let next = world.now + LOOK;
        if let Err(stop) = world.run_to(next) {
            return stopped(stop);
        }
    }
    // Every member can read and write again.
    world.swarm.request_every = 0;
    for host in settled_members(world) {
        for number in 0..KEYS {
            let before = world.changes;
            let asked = world.now;
            while world.changes == before {
                if world.now - asked > 60_000_000 {
                    return Outcome::Stuck(format!("{} can't change {}", name(host), key(number)));
                }
                let until = world.now + LOOK;
                let tried = world.ask(host, &key(number), false).and_then(|()| world.run_to(until - LOOK / 2));
                let tried = tried.and_then(|()| world.ask(host, &key(number), true)).and_then(|()| world.run_to(until));
                if let Err(stop) = tried {
                    return stopped(stop);
                }
            }
        }
    }
    let lists = world.mesh_record().map_or(0, |r| r.voters.number);
    Outcome::Passed(Passed { lists, healed_after, ..counted(world) })
}

fn counted(world: &World) -> Passed {
    let (events, changes, flips, put_back) = (world.event, world.changes, world.flips, world.put_back);
    Passed { events, changes, flips, put_back, ..Passed::default() }
}

/// Members that belong to the mesh by its record.
fn settled_members(world: &World) -> Vec<Host> {
    let Some(record) = world.mesh_record() else { return Vec::new() };
    record.members.iter().filter(|m| m.state != MemberState::Removed).filter_map(|m| world.host(&m.id)).collect()
}

/// Whether nothing is left to be done: one mesh, its voters settled and with the stores that they have now, the same
/// copies everywhere, nobody stale. What is missing otherwise.
fn at_rest(world: &World) -> Result<(), String> {
    let record = world.mesh_record().ok_or("no mesh has been made")?;
    if record.voters_state != VotersState::Settled {
        return Err(format!("voter list {} has not settled", record.voters.number));
    }
    for voter in &record.voters.voters {
        let Some(host) = world.host(&voter.member) else { return Err(format!("voter {} is nobody", voter.member)) };
        if world.members[host].disk.ledger().store != voter.store {
            return Err(format!("voter {} is listed with a store that it has not", voter.member));
        }
    }
    let members = settled_members(world);
    let newest = |key: &RecordKey| {
        let copies = members.iter().filter_map(|h| world.members[*h].disk.ledger().copies.get(key));
        copies.map(|c| c.announced).max()
    };
    for host in &members {
        let member = &world.members[*host];
        let Some(process) = &member.process else { return Err(format!("{} does not run", member.id)) };
        if !process.ledger.fresh(Instant(member.clock.at(world.now))) {
            return Err(format!("{} is stale", member.id));
        }
        for key in (0..KEYS).map(key).chain([RecordKey::mesh()]) {
            let here = member.disk.ledger().copies.get(&key).map(|c| c.announced);
            if here < newest(&key) {
                return Err(format!("{} holds {key} at {here:?}, the newest is {:?}", member.id, newest(&key)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use miroir::types::Scope;

    use super::*;

    /// A TTL of the simulated members, in microseconds.
    const TTL: u64 = 10_000_000;

    /// The one whom all members name as the holder of a scope, itself believing so.
    fn agreed_leader(world: &World, scope: &Scope) -> Option<(Host, u64)> {
        let mut named = (0..world.members.len()).map(|host| {
            let member = &world.members[host];
            let (leading, at) = (&member.process.as_ref()?.leading, Instant(member.clock.at(world.now)));
            let row = leading.core.rows(at).find(|row| row.scope == *scope)?;
            let holder = world.host(&row.holder?.member)?;
            let believes = leading.believes(scope, at).is_some();
            (believes == (holder == host)).then_some((holder, row.epoch.number()))
        });
        let first = named.next()??;
        named.all(|other| other == Some(first)).then_some(first)
    }

    /// What issue and design promise of a cut that heals, exactly, in virtual time.
    #[test]
    fn within_a_ttl_after_a_cut_has_healed_all_name_one_leader() {
        for seed in 0..12 {
            let (members, drift_ppm) = ([3, 5][seed as usize % 2], [0, 50_000][seed as usize / 2 % 2]);
            let swarm = Swarm { members, drift_ppm, request_every: 0, ..Swarm::calm() };
            let mut world = World::new(seed, Some(swarm), Trace::off(), u64::MAX);
            world.run_to(60_000_000).unwrap();
            let scope = &Scope::STANDING[seed as usize % 3];
            let (leader, before) = agreed_leader(&world, scope).expect("everything is whole");
            // The leader and, of five, another one apart from the rest; every other time only what they say is lost.
            let minority: Vec<Host> = (0..members).map(|i| (leader + i) % members).take((members - 1) / 2).collect();
            for from in &minority {
                for to in (0..members).filter(|to| !minority.contains(to)) {
                    world.network.cut(*from, to);
                    if seed % 4 < 2 {
                        world.network.cut(to, *from);
                    }
                }
            }
            let lasts = 5_000_000 + seed * 3_500_000;
            world.run_to(60_000_000 + lasts).unwrap();
            world.network.heal();
            world.run_to(60_000_000 + lasts + TTL).unwrap();
            let (_, after) =
                agreed_leader(&world, scope).unwrap_or_else(|| panic!("seed {seed}: {scope} after {lasts} us"));
            assert!(after > before || lasts < 2 * TTL, "seed {seed}: it was replaced meanwhile");
        }
    }
}
