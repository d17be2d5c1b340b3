//! Values by number: what a model's states are made of.
//!
//! A state of a model is many parts, of which a step changes one. Each part is kept once and named by a small number, so
//! that states are cheap to copy and to compare, and what a core does with an input is worked out once, not in every state
//! in which it happens. Must not know: what the parts are.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

/// The number of a value.
pub type Id = u32;

/// The numbers by the values' prints, and the values by their numbers.
type Inner<T> = (HashMap<u128, Id>, Vec<Arc<T>>);

/// Values, each once. Two are the same if their texts for people are, but for what `ignored` names.
#[derive(Debug)]
pub struct Table<T> {
    ignored: &'static [&'static str],
    inner: RwLock<Inner<T>>,
}

impl<T: fmt::Debug> Table<T> {
    /// An empty table; numbers right after a text in `ignored` make no difference.
    pub fn new(ignored: &'static [&'static str]) -> Self {
        Self { ignored, inner: RwLock::default() }
    }

    /// The number of a value.
    pub fn id(&self, value: T) -> Id {
        let print = print_of(&value, self.ignored);
        if let Some(id) = self.inner.read().unwrap_or_else(PoisonError::into_inner).0.get(&print) {
            return *id;
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let (ids, values) = &mut *inner;
        *ids.entry(print).or_insert_with(|| {
            values.push(Arc::new(value));
            Id::try_from(values.len() - 1).expect("memory ends before numbers do")
        })
    }

    /// The value of a number.
    pub fn get(&self, id: Id) -> Arc<T> {
        Arc::clone(&self.inner.read().unwrap_or_else(PoisonError::into_inner).1[id as usize])
    }
}

/// Hashes a few small numbers, fast.
#[derive(Debug, Default, Clone, Copy)]
pub struct Numbers(u64);

impl Hasher for Numbers {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number.unsigned_abs() as u64);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

/// What is worked out once.
#[derive(Debug)]
pub struct Memo<K, V>(RwLock<HashMap<K, V, BuildHasherDefault<Numbers>>>);

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Hash + Eq, V: Clone> Memo<K, V> {
    /// What `make` makes of the key, or has made.
    pub fn of(&self, key: K, make: impl FnOnce() -> V) -> V {
        if let Some(known) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return known.clone();
        }
        let made = make();
        self.0.write().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(made).clone()
    }
}

fn print_of(value: &impl fmt::Debug, ignored: &[&str]) -> u128 {
    let mut text = String::new();
    write!(text, "{value:?}").expect("a text takes everything");
    let mut hashers = [DefaultHasher::new(), DefaultHasher::new()];
    hashers[1].write_u8(1);
    let mut feed = |part: &str| hashers.iter_mut().for_each(|h| h.write(part.as_bytes()));
    let mut rest = text.as_str();
    while let Some((at, word)) = ignored.iter().filter_map(|w| Some((rest.find(w)?, w))).min() {
        let (before, after) = rest.split_at(at + word.len());
        feed(before);
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    feed(rest);
    hashers.iter().fold(0, |print, h| print << 64 | u128::from(h.finish()))
}
