//! Words: cutting text into them, normalising them, and how far two of them are apart.
//!
//! Rule: documents and queries go through the same functions, so a word of a query is found where it stands. Positions
//! count words; the end of a sentence or of an array element counts eight. Must not know: documents, indexes, ranking.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// How much further apart words are when a sentence or an array element ends between them.
pub const HARD_GAP: u32 = 8;

/// A word as it stands in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The normalised word.
    pub word: String,
    /// Its position, counted in words, hard separators counting [`HARD_GAP`].
    pub position: u32,
    /// Where it starts, in bytes of the original text.
    pub start: usize,
    /// Its length in bytes of the original text.
    pub length: usize,
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || is_combining_mark(c) || matches!(c, '|' | '=' | '~' | '<' | '>' | '$' | '^' | '€' | '£')
}

/// Whether the text between two words ends a sentence.
fn is_hard(separator: &str) -> bool {
    let mut chars = separator.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ';' | '!' | '?' | '¿' | '¡' => return true,
            '.' | ',' if chars.peek().is_some_and(|next| next.is_whitespace()) => return true,
            _ => {}
        }
    }
    false
}

/// Lowercase, without diacritics, compatibility forms resolved.
pub fn normalize_word(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    for c in word.nfkd().filter(|c| !is_combining_mark(*c)) {
        match c {
            'æ' | 'Æ' => out.push_str("ae"),
            'œ' | 'Œ' => out.push_str("oe"),
            c => out.extend(c.to_lowercase()),
        }
    }
    out
}

/// The form in which string facets are compared: trimmed, compatibility forms resolved, lowercase.
pub fn normalize_facet(value: &str) -> String {
    value.trim().nfkd().collect::<String>().to_lowercase()
}

/// All words of a text; the first one stands at `from`.
pub fn tokenize(text: &str, from: u32) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut chars = text.char_indices().peekable();
    let mut separator_start = 0;
    while let Some((start, c)) = chars.next() {
        if !is_word_char(c) {
            continue;
        }
        let mut end = start + c.len_utf8();
        while let Some((at, next)) = chars.peek().copied() {
            if !is_word_char(next) {
                break;
            }
            end = at + next.len_utf8();
            chars.next();
        }
        let word = normalize_word(&text[start..end]);
        if !word.is_empty() {
            let position = match tokens.last() {
                None => from,
                Some(last) if is_hard(&text[separator_start..start]) => last.position + HARD_GAP,
                Some(last) => last.position + 1,
            };
            tokens.push(Token { word, position, start, length: end - start });
        }
        separator_start = end;
    }
    tokens
}

/// The number of edits (insert, delete, replace, swap of neighbours) between two words, at most `max`, else `None`. An
/// edit of the first letter counts two. With `prefix`, `candidate` only needs to begin with something that near.
pub fn distance(wanted: &[char], candidate: &str, max: u8, prefix: bool) -> Option<u8> {
    const LONGEST: usize = 64;
    let max = usize::from(max);
    let mut other = ['\0'; LONGEST];
    let mut length = 0;
    for c in candidate.chars() {
        if length == LONGEST || (prefix && length > wanted.len() + max) {
            break;
        }
        other[length] = c;
        length += 1;
    }
    if wanted.is_empty() || wanted.len() > LONGEST || length == 0 {
        return None;
    }
    if !prefix && (candidate.len() > LONGEST * 4 || length.abs_diff(wanted.len()) > max) {
        return None;
    }
    let other = &other[..length];
    let mut rows = [[0usize; LONGEST + 1]; 3];
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=wanted.len() {
        let (now, before, earlier) = (i % 3, (i + 2) % 3, (i + 1) % 3);
        rows[now][0] = i;
        let mut best = i;
        for j in 1..=length {
            let change = usize::from(wanted[i - 1] != other[j - 1]);
            let mut cost = (rows[before][j - 1] + change).min(rows[before][j] + 1).min(rows[now][j - 1] + 1);
            if i > 1 && j > 1 && wanted[i - 1] == other[j - 2] && wanted[i - 2] == other[j - 1] {
                cost = cost.min(rows[earlier][j - 2] + 1);
            }
            rows[now][j] = cost;
            best = best.min(cost);
        }
        if best > max {
            return None;
        }
    }
    let last = &rows[wanted.len() % 3];
    let edits = if prefix { last[1..=length].iter().copied().min()? } else { last[length] };
    let first_differs = usize::from(edits > 0 && wanted[0] != other[0]);
    let total = edits + first_differs;
    (total <= max).then_some(total as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: &str, b: &str, prefix: bool) -> Option<u8> {
        distance(&a.chars().collect::<Vec<_>>(), b, 2, prefix)
    }

    #[test]
    fn words_are_lowercase_without_diacritics() {
        let words: Vec<String> = tokenize("Crème-Brûlée ÆON ﬁne", 0).into_iter().map(|t| t.word).collect();
        assert_eq!(words, ["creme", "brulee", "aeon", "fine"]);
    }

    #[test]
    fn sentence_ends_are_far() {
        let at: Vec<u32> = tokenize("a b. c, d e;f g.h", 0).into_iter().map(|t| t.position).collect();
        assert_eq!(at, [0, 1, 9, 17, 18, 26, 27, 28]);
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(near("library", "libary", false), Some(1));
        assert_eq!(near("libary", "libaravis", true), Some(1));
        assert_eq!(near("hello", "hlelo", false), Some(1));
        assert_eq!(near("hello", "jello", false), Some(2));
        assert_eq!(near("hello", "world", false), None);
        assert_eq!(near("abc", "abc", false), Some(0));
    }
}
