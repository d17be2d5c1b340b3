//! At most one member believes that it holds a scope, at any instant of true time.
//!
//! Promised while clocks run within 5 % (design §7); while some machine is or was paused together with its clock, only
//! fencing is promised, and this check says nothing about that member. Must not know: how leases work.

use std::collections::BTreeMap;

use super::Broken;

/// Whoever believes now.
#[derive(Debug, Default)]
pub struct Holders {
    // For how much of the run nobody held a scope, and since when somebody or nobody does: for statistics.
    acquisitions: BTreeMap<String, u64>,
    last: BTreeMap<String, usize>,
}

impl Holders {
    /// Looks at one scope: `believers` are the members that believe, by number.
    ///
    /// # Errors
    /// [`Broken`] if there are two.
    pub fn look(&mut self, scope: &str, believers: &[usize]) -> Result<(), Broken> {
        if let [first, second, ..] = believers {
            let what = format!("members {first} and {second} both hold {scope}");
            return Err(Broken::new("one_holder", what));
        }
        if let [holder] = believers
            && self.last.insert(scope.to_owned(), *holder) != Some(*holder)
        {
            *self.acquisitions.entry(scope.to_owned()).or_default() += 1;
        }
        Ok(())
    }

    /// How often the holder of each scope changed.
    pub fn acquisitions(&self) -> &BTreeMap<String, u64> {
        &self.acquisitions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_believers_are_found() {
        let mut holders = Holders::default();
        holders.look("s", &[]).unwrap();
        holders.look("s", &[2]).unwrap();
        holders.look("s", &[2]).unwrap();
        assert_eq!(holders.acquisitions()["s"], 1);
        assert_eq!(holders.look("s", &[0, 2]).unwrap_err().name, "one_holder");
    }
}
