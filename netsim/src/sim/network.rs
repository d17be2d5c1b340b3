//! The network between simulated members: what happens to a message on its way.
//!
//! Every directed link has a state of its own, so that cuts may be one-way or partial. Must not know: what messages say.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::swarm::Swarm;

/// A member by its number in the simulation.
pub type Host = usize;

/// Links between hosts. All times are in microseconds.
#[derive(Debug, Default)]
pub struct Network {
    cut: BTreeSet<(Host, Host)>,
    // A clogged link delivers nothing before that time, then all at once.
    clogged: BTreeMap<(Host, Host), u64>,
}

impl Network {
    /// Cuts one direction.
    pub fn cut(&mut self, from: Host, to: Host) {
        self.cut.insert((from, to));
    }

    /// Holds back what is sent in one direction until `until`.
    pub fn clog(&mut self, from: Host, to: Host, until: u64) {
        self.clogged.insert((from, to), until);
    }

    /// All links are whole again.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.clogged.clear();
    }

    /// When the copies of a message sent now arrive: none if it is lost, several if it is repeated.
    pub fn deliveries(&self, now: u64, from: Host, to: Host, swarm: &Swarm, rng: &mut Rng) -> Vec<u64> {
        if self.cut.contains(&(from, to)) || rng.u32(..1_000_000) < swarm.loss_ppm {
            return Vec::new();
        }
        let copies = if rng.u32(..1_000_000) < swarm.duplicate_ppm { 2 } else { 1 };
        let earliest = self.clogged.get(&(from, to)).copied().unwrap_or(0).max(now);
        // Independent delays reorder messages by themselves.
        (0..copies).map(|_| earliest + swarm.delay(rng)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_one_way_cut_leaves_the_other_direction() {
        let swarm = Swarm::calm();
        let mut rng = Rng::with_seed(1);
        let mut network = Network::default();
        network.cut(0, 1);
        assert!(network.deliveries(5, 0, 1, &swarm, &mut rng).is_empty());
        assert_eq!(network.deliveries(5, 1, 0, &swarm, &mut rng).len(), 1);
        network.heal();
        assert_eq!(network.deliveries(5, 0, 1, &swarm, &mut rng).len(), 1);
    }

    #[test]
    fn a_clogged_link_delivers_late_but_delivers() {
        let mut network = Network::default();
        network.clog(0, 1, 1_000_000);
        let at = network.deliveries(5, 0, 1, &Swarm::calm(), &mut Rng::with_seed(1));
        assert!(at.len() == 1 && at[0] >= 1_000_000);
    }
}
