//! What the ledger says of leases, checked as it comes to be known: epochs never go back, and none is given twice.
//!
//! Source: design §7. Must not know: how leases are held.

use std::collections::BTreeMap;

use miroir::types::{Epoch, Holder, LeaseValue, Scope};

use super::Broken;

/// What is known of all leases.
#[derive(Debug, Default)]
pub struct Leases {
    // Of each scope: what was agreed on, by version.
    values: BTreeMap<Scope, BTreeMap<u64, LeaseValue>>,
    // Who began to hold a scope under an epoch.
    began: BTreeMap<(Scope, Epoch), Holder>,
}

impl Leases {
    /// This value of a lease's record was agreed on.
    ///
    /// # Errors
    /// [`Broken`] if that can't be, beside the versions before and after it.
    pub fn agreed(&mut self, scope: &Scope, version: u64, value: &LeaseValue) -> Result<(), Broken> {
        let values = self.values.entry(scope.clone()).or_default();
        let before = values.range(..version).next_back().map(|(_, v)| v);
        let after = values.range(version + 1..).next().map(|(_, v)| v);
        for (earlier, later) in before.map(|b| (b, value)).into_iter().chain(after.map(|a| (value, a))) {
            if later.epoch < earlier.epoch || later.epoch == earlier.epoch && later.holder != earlier.holder {
                let what = format!("{scope}: {earlier:?}, then {later:?}");
                return Err(Broken::new("epochs_never_go_back", what));
            }
        }
        values.insert(version, value.clone());
        Ok(())
    }

    /// A process holds a scope from now on.
    ///
    /// # Errors
    /// [`Broken`] if the epoch was held before.
    pub fn began(&mut self, scope: &Scope, epoch: Epoch, holder: &Holder) -> Result<(), Broken> {
        match self.began.insert((scope.clone(), epoch), holder.clone()) {
            Some(before) => {
                let what = format!("{scope} under {epoch}: {before:?}, and again {holder:?}");
                Err(Broken::new("an_epoch_is_given_once", what))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use miroir::types::MemberId;

    use super::*;

    fn value(member: &str, epoch: u64) -> LeaseValue {
        let holder = Holder { member: MemberId::new(member).unwrap(), start: 1 };
        LeaseValue { holder, epoch: Epoch::new(epoch).unwrap(), renewal: 1, ttl_ms: 10_000, released: false }
    }

    #[test]
    fn an_epoch_that_goes_back_is_found_whatever_is_heard_first() {
        for (first, second) in [((3, 5), (4, 4)), ((4, 4), (3, 5))] {
            let mut leases = Leases::default();
            leases.agreed(&Scope::Membership, first.0, &value("m1", first.1)).unwrap();
            leases.agreed(&Scope::Membership, 9, &value("m1", 9)).unwrap();
            assert!(leases.agreed(&Scope::Membership, second.0, &value("m1", second.1)).is_err());
        }
    }

    #[test]
    fn an_epoch_of_two_holders_is_found() {
        let mut leases = Leases::default();
        leases.agreed(&Scope::Membership, 1, &value("m1", 1)).unwrap();
        leases.agreed(&Scope::Membership, 2, &value("m1", 1)).unwrap();
        assert!(leases.agreed(&Scope::Membership, 3, &value("m2", 1)).is_err());
        let holder = value("m1", 1).holder;
        leases.began(&Scope::Membership, Epoch::new(1).unwrap(), &holder).unwrap();
        assert!(leases.began(&Scope::Membership, Epoch::new(1).unwrap(), &holder).is_err());
    }
}
