//! The faults of a run: which one strikes now, whom, and for how long.
//!
//! Rule: faults stay within what the design promises to survive as far as data goes: of the stores that vote, a majority is
//! always whole (one put back from a copy counts as lost), and no two stores are lost within half a minute, so that a voter
//! is not added which has just lost its store. Everything else may be down, cut off, slow or wrong at once. Must not know:
//! what is checked.

use miroir::types::{MeshRecord, RecordKey, Voter, VoterList};

use super::network::Host;
use super::world::{Stopped, World, address, name};

/// Between two losses of stores at least, in microseconds: longer than a member counts as speaking.
const LOSSES_APART: u64 = 30_000_000;

/// One fault, drawn from the run's dice; some draws find nothing to do.
///
/// # Errors
/// What a transaction that reached the disk broke.
pub fn strike(world: &mut World) -> Result<(), Stopped> {
    let on = world.swarm.faults;
    let host = world.rng.usize(..world.members.len());
    let running = world.members[host].process.is_some();
    match world.rng.u8(..13) {
        0 | 1 if on.crash && running => {
            world.crash(host)?;
            let after = lasting(world, 12_000_000);
            world.restart_after(host, after);
        }
        2 if on.crash => {
            // The lights go out.
            for host in 0..world.members.len() {
                if world.members[host].process.is_some() {
                    world.crash(host)?;
                    let after = lasting(world, 6_000_000);
                    world.restart_after(host, after);
                }
            }
        }
        3 | 4 if on.partition => partition(world),
        5 if on.clog => {
            let (to, until) = (other(world, host), world.now + lasting(world, 15_000_000));
            world.network.clog(host, to, until);
        }
        6 if on.pause && running && !world.members[host].paused => {
            world.members[host].paused = true;
            let after = lasting(world, 25_000_000);
            world.resume_after(host, after);
        }
        7 if on.freeze && running && !world.members[host].clock.is_stopped() => {
            let now = world.now;
            world.members[host].clock.stop(now);
            world.members[host].paused = true;
            let after = lasting(world, 25_000_000);
            world.thaw_after(host, after);
        }
        8 if on.drift => {
            let (now, drift) = (world.now, world.swarm.clock_drift(&mut world.rng));
            world.members[host].clock.drift(now, drift);
            world.set_timer(host);
        }
        9 if on.jump => {
            let (now, by) = (world.now, lasting(world, 30_000_000));
            world.members[host].clock.jump(now, by);
            world.distrust_clock(host);
            world.set_timer(host);
        }
        10 if on.wipe && may_lose_store(world, host) => world.replace_store(host),
        11 if on.restore => {
            // First copies are taken, and at a later draw one is put back.
            let old: Vec<Host> = (0..world.members.len()).filter(|h| world.members[*h].disk.has_older_copy()).collect();
            match world.rng.choice(&old).copied() {
                Some(host) if world.rng.bool() && may_lose_store(world, host) => {
                    world.put_back(host)?;
                    let after = lasting(world, 3_000_000);
                    world.restart_after(host, after);
                }
                _ if world.members[host].disk.ledger().count > 0 => world.members[host].disk.back_up(),
                _ => {}
            }
        }
        12 if on.membership => membership(world)?,
        _ => {}
    }
    Ok(())
}

/// Mostly short, sometimes up to `most`.
fn lasting(world: &mut World, most: u64) -> u64 {
    let most = if world.rng.u8(..3) == 0 { most } else { most / 8 };
    world.rng.u64(1_000..=most)
}

fn other(world: &mut World, host: Host) -> Host {
    let hosts = world.members.len();
    if hosts == 1 { host } else { (host + world.rng.usize(1..hosts)) % hosts }
}

/// Cuts links: halves from each other, one host off, one direction only, or two hosts that all others see.
fn partition(world: &mut World) {
    let hosts = world.members.len();
    let a = world.rng.usize(..hosts);
    let b = other(world, a);
    let one_way = world.rng.u8(..3) == 0;
    let sides: Vec<bool> = match world.rng.u8(..3) {
        0 => (0..hosts).map(|_| world.rng.bool()).collect(),
        1 => (0..hosts).map(|h| h == a).collect(),
        _ => Vec::new(),
    };
    let mut cut = |from: Host, to: Host| {
        if from != to {
            world.network.cut(from, to);
            if !one_way {
                world.network.cut(to, from);
            }
        }
    };
    if sides.is_empty() {
        cut(a, b);
    }
    for from in (0..sides.len()).filter(|h| sides[*h]) {
        (0..sides.len()).filter(|h| !sides[*h]).for_each(|to| cut(from, to));
    }
    let after = lasting(world, 30_000_000);
    world.heal_after(after);
}

/// Whether a majority of the voting stores stays whole without this one, whichever of the lists in use counts.
fn may_lose_store(world: &World, host: Host) -> bool {
    let lists = lists(world);
    if world.last_loss.is_some_and(|at| world.now - at < LOSSES_APART) {
        return false;
    }
    // While the mesh is being made nothing is known to be chosen, and nobody may lose what may be half of it.
    if world.mesh_record().is_none() || lists.is_empty() {
        return false;
    }
    lists.iter().all(|list| stands(world, list, Some(host)))
}

/// All lists of voters that somebody goes by, or that may be chosen before anybody knows.
fn lists(world: &World) -> Vec<VoterList> {
    let disks = || world.members.iter().map(|m| m.disk.ledger());
    let mut lists: Vec<_> = disks().filter_map(|d| d.list.as_deref().cloned()).collect();
    let accepted = disks().filter_map(|d| d.registers.get(&RecordKey::mesh())?.accepted.as_ref());
    lists.extend(accepted.filter_map(|(_, v)| MeshRecord::from_json(&v.value).ok()).map(|r| r.voters));
    lists
}

/// Whether a majority of the list is whole, without one host.
fn stands(world: &World, list: &VoterList, without: Option<Host>) -> bool {
    let whole = |v: &&Voter| {
        let has = |h: &Host| {
            let m = &world.members[*h];
            m.id == v.member && m.disk.ledger().store == v.store && !m.disk.restored() && Some(*h) != without
        };
        (0..world.members.len()).any(|h| has(&h))
    };
    list.voters.iter().filter(whole).count() >= list.majority()
}

/// Whether the newest list has lost its majority: a store was lost that nobody knew yet to be needed, because a voter was on
/// its way in or out. Nothing is demanded of such a mesh but safety; its operator has `mesh recover`.
pub fn majority_is_lost(world: &World) -> bool {
    lists(world).iter().max_by_key(|l| l.number).is_some_and(|list| !stands(world, list, None))
}

/// The operator takes a member in or out, through any member that runs.
fn membership(world: &mut World) -> Result<(), Stopped> {
    let (Some(record), Some(version)) = (world.mesh_record(), newest(world)) else { return Ok(()) };
    let running: Vec<Host> = (0..world.members.len()).filter(|h| world.members[*h].process.is_some()).collect();
    let Some(&through) = world.rng.choice(&running) else { return Ok(()) };
    let joiners = world.swarm.members..world.members.len();
    let Some(host) = joiners.into_iter().find(|_| world.rng.bool()) else { return Ok(()) };
    let next = if record.member(&name(host)).is_some() { left(record, host) } else { joined(world, record, host) };
    world.change_mesh(through, version, &next)?;
    if next.member(&name(host)).is_some() && world.members[host].process.is_none() {
        let after = lasting(world, 2_000_000);
        world.restart_after(host, after);
    }
    Ok(())
}

fn newest(world: &World) -> Option<u64> {
    let copies = world.members.iter().filter_map(|m| m.disk.ledger().copies.get(&RecordKey::mesh()));
    copies.map(|c| c.version).max()
}

fn joined(world: &World, mut record: MeshRecord, host: Host) -> MeshRecord {
    let like = record.members[0].clone();
    let store = world.members[host].disk.ledger().store;
    record.members.push(miroir::types::MeshMember {
        id: name(host),
        address: address(host),
        store,
        state: miroir::types::MemberState::Active,
        ..like
    });
    record
}

fn left(mut record: MeshRecord, host: Host) -> MeshRecord {
    for member in record.members.iter_mut().filter(|m| m.id == name(host)) {
        member.state = miroir::types::MemberState::Removed;
    }
    record
}
