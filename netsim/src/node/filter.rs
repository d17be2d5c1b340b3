//! Filters: the grammar, its error texts, and whether a document passes.
//!
//! Rule: a filter is parsed wholly before a document is looked at, and each attribute in it must be filterable; nesting
//! is bounded. Must not know: how documents are found or stored.

use std::collections::HashSet;

use serde_json::Value;

use super::error::{ApiError, Result};
use super::index::{Doc, Facts};
use super::settings::Settings;
use super::text::normalize_facet;

const MAX_DEPTH: usize = 200;
const OPERATIONS: &str = "`=`, `!=`, `>=`, `>`, `<=`, `<`, `IN`, `NOT IN`, `TO`, `EXISTS`, `NOT EXISTS`, `IS NULL`, \
    `IS NOT NULL`, `IS EMPTY`, `IS NOT EMPTY`, `CONTAINS`, `NOT CONTAINS`, `STARTS WITH`, `NOT STARTS WITH`, \
    `_geoRadius`, `_geoBoundingBox` or `_geoPolygon`";

/// A parsed filter.
#[derive(Debug, Clone)]
pub enum Filter {
    /// All of them; of none: everything passes.
    And(Vec<Filter>),
    /// At least one of them.
    Or(Vec<Filter>),
    /// Not this one.
    Not(Box<Filter>),
    /// One condition on one attribute.
    Condition(Box<Condition>),
}

/// One condition.
#[derive(Debug, Clone)]
pub struct Condition {
    attribute: String,
    /// Where the attribute stands in `source`, in characters.
    span: (usize, usize),
    source: String,
    test: Test,
}

/// A value in the forms in which it is compared.
#[derive(Debug, Clone)]
struct Operand {
    text: String,
    normalized: String,
    number: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

#[derive(Debug, Clone)]
enum Test {
    Equal(Operand),
    NotEqual(Operand),
    Compare(Order, Operand),
    Between(Operand, Operand),
    In(Vec<Operand>, HashSet<String>, HashSet<u64>),
    Exists,
    Null,
    Empty,
    StartsWith(Operand),
}

/// How errors about attributes are worded.
#[derive(Debug, Clone, Copy)]
pub struct Wording<'a> {
    /// `invalid_search_filter` or `invalid_document_filter`.
    pub code: &'static str,
    /// Named in front of the text.
    pub index: Option<&'a str>,
    /// The filter is shown as it was understood, not as it was sent.
    pub canonical: bool,
}

/// Parses the JSON value of a `filter` parameter: a string, or an array of strings and arrays of strings.
pub fn parse(value: &Value, code: &'static str) -> Result<Option<Filter>> {
    let bad = |expected: &str, found: &Value| {
        Err(ApiError::new(
            code,
            format!("Invalid syntax for the filter parameter: `expected {expected}, found: {found}`."),
        ))
    };
    match value {
        Value::Null => Ok(None),
        Value::String(text) => parse_text(text, code),
        Value::Array(items) => {
            let mut all = Vec::new();
            for item in items {
                match item {
                    Value::String(text) => all.extend(parse_text(text, code)?),
                    Value::Array(choices) => {
                        let mut any = Vec::new();
                        for choice in choices {
                            match choice {
                                Value::String(text) => any.extend(parse_text(text, code)?),
                                other => return bad("String", other),
                            }
                        }
                        match any.len() {
                            0 => {}
                            1 => all.append(&mut any),
                            _ => all.push(Filter::Or(any)),
                        }
                    }
                    other => return bad("String, [String]", other),
                }
            }
            Ok(match all.len() {
                0 => None,
                1 => all.pop(),
                _ => Some(Filter::And(all)),
            })
        }
        other => bad("String, Array", other),
    }
}

fn parse_text(text: &str, code: &'static str) -> Result<Option<Filter>> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let chars: Vec<char> = text.chars().collect();
    let mut parser = Parser { text, chars, at: 0, code };
    let filter = parser.or(0)?;
    let rest_at = parser.at;
    if rest_at < parser.chars.len() && parser.chars[rest_at..].iter().any(|c| !c.is_whitespace()) {
        let rest = parser.slice(rest_at, parser.chars.len());
        let why = format!(
            "Found unexpected characters at the end of the filter: `{rest}`. You probably forgot an `OR` or an `AND` rule."
        );
        return Err(parser.error(why, rest_at, parser.chars.len()));
    }
    Ok(Some(filter))
}

struct Parser<'a> {
    text: &'a str,
    chars: Vec<char>,
    at: usize,
    code: &'static str,
}

impl Parser<'_> {
    fn slice(&self, from: usize, to: usize) -> String {
        self.chars[from..to].iter().collect()
    }

    fn error(&self, why: impl std::fmt::Display, from: usize, to: usize) -> ApiError {
        ApiError::new(self.code, format!("{why}\n{}:{} {}", from + 1, to + 1, self.text))
    }

    fn space(&mut self) {
        while self.chars.get(self.at).is_some_and(|c| c.is_whitespace()) {
            self.at += 1;
        }
    }

    /// Takes `word` if it stands here as a whole word.
    fn keyword(&mut self, word: &str) -> bool {
        let end = self.at + word.chars().count();
        let here = self.chars.get(self.at..end).is_some_and(|chars| chars.iter().copied().eq(word.chars()));
        let whole = self.chars.get(end).is_none_or(|c| !is_value_char(*c));
        if here && whole {
            self.at = end;
        }
        here && whole
    }

    /// Takes several words with space between them, or none of them.
    fn keywords(&mut self, words: &[&str]) -> bool {
        let start = self.at;
        for word in words {
            self.space();
            if !self.keyword(word) {
                self.at = start;
                return false;
            }
        }
        true
    }

    fn or(&mut self, depth: usize) -> Result<Filter> {
        let mut items = vec![self.and(depth)?];
        while self.keywords(&["OR"]) {
            items.push(self.and(depth)?);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Filter::Or(items) })
    }

    fn and(&mut self, depth: usize) -> Result<Filter> {
        let mut items = vec![self.not(depth)?];
        while self.keywords(&["AND"]) {
            items.push(self.not(depth)?);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Filter::And(items) })
    }

    fn not(&mut self, depth: usize) -> Result<Filter> {
        if depth > MAX_DEPTH {
            return Err(self.error("The filter exceeded the maximum depth limit. Try rewriting the filter so that it contains fewer nested conditions.", self.at, self.at));
        }
        self.space();
        if self.keyword("NOT") {
            return Ok(Filter::Not(Box::new(self.not(depth + 1)?)));
        }
        let start = self.at;
        if self.chars.get(start) == Some(&'(') {
            self.at += 1;
            let inner = self.or(depth + 1)?;
            self.space();
            if self.chars.get(self.at) != Some(&')') {
                let text = self.slice(start, self.chars.len());
                let why = format!("Expression `{text}` is missing the following closing delimiter: `)`.");
                return Err(self.error(why, start, self.chars.len()));
            }
            self.at += 1;
            self.space_before_keyword();
            return Ok(inner);
        }
        self.condition()
    }

    /// Values swallow the space behind them; keywords such as `EXISTS` do not.
    fn space_before_keyword(&mut self) {
        self.space();
    }

    fn no_operation(&self, start: usize) -> ApiError {
        if start >= self.chars.len() {
            return self.error(
                format!("Was expecting an operation {OPERATIONS} but instead got nothing."),
                start,
                start,
            );
        }
        let rest = self.slice(start, self.chars.len());
        self.error(format!("Was expecting an operation {OPERATIONS} at `{rest}`."), start, self.chars.len())
    }

    /// A quoted string or a bare word, with its place.
    fn value(&mut self) -> Result<(String, (usize, usize))> {
        self.space();
        let start = self.at;
        match self.chars.get(start).copied() {
            Some(quote @ ('"' | '\'')) => {
                let mut text = String::new();
                let mut at = start + 1;
                while let Some(c) = self.chars.get(at).copied() {
                    match (c, self.chars.get(at + 1).copied()) {
                        ('\\', Some(next)) if next == quote || next == '\\' => {
                            text.push(next);
                            at += 2;
                        }
                        (c, _) if c == quote => {
                            self.at = at + 1;
                            self.space();
                            return Ok((text, (start + 1, at)));
                        }
                        (c, _) => {
                            text.push(c);
                            at += 1;
                        }
                    }
                }
                let rest = self.slice(start, self.chars.len()).replace(quote, &format!("\\{quote}"));
                let why = format!("Expression `{rest}` is missing the following closing delimiter: `{quote}`.");
                Err(self.error(why, start, self.chars.len()))
            }
            _ => {
                while self.chars.get(self.at).is_some_and(|c| is_value_char(*c)) {
                    self.at += 1;
                }
                let end = self.at;
                if end == start {
                    return Err(self.error("Was expecting a value but instead got nothing.", start, start));
                }
                let text = self.slice(start, end);
                if matches!(
                    text.as_str(),
                    "AND"
                        | "OR"
                        | "NOT"
                        | "IN"
                        | "TO"
                        | "EXISTS"
                        | "CONTAINS"
                        | "STARTS"
                        | "_geoRadius"
                        | "_geoBoundingBox"
                ) {
                    let why = format!(
                        "Was expecting a value but instead got `{text}`, which is a reserved keyword. To use `{text}` as a field name or a value, surround it by quotes."
                    );
                    return Err(self.error(why, start, end));
                }
                self.space();
                Ok((text, (start, end)))
            }
        }
    }

    fn operand(&mut self) -> Result<Operand> {
        Ok(operand(self.value()?.0))
    }

    fn condition(&mut self) -> Result<Filter> {
        let start = self.at;
        if start >= self.chars.len() {
            return Err(self.no_operation(start));
        }
        if ["_geoRadius", "_geoBoundingBox", "_geoPolygon"].iter().any(|name| self.keyword(name)) {
            return Err(self.error("The stand-in has no geo search.", start, self.chars.len()));
        }
        if matches!(self.chars[start], '=' | '!' | '<' | '>' | ')' | '[' | ']' | ',') {
            return Err(self.no_operation(start));
        }
        let (attribute, span) = self.value()?;
        if attribute == "_geo" {
            let why = "`_geo` is a reserved keyword and thus can't be used as a filter expression. Use the `_geoRadius(latitude, longitude, distance)` or `_geoBoundingBox([latitude, longitude], [latitude, longitude])` built-in rules to filter on `_geo` coordinates.";
            return Err(self.error(why, start, self.chars.len()));
        }
        let (negated, test) = self.test(start)?;
        let condition = Condition { attribute, span, source: self.text.to_owned(), test };
        let condition = Filter::Condition(Box::new(condition));
        Ok(if negated { Filter::Not(Box::new(condition)) } else { condition })
    }

    fn test(&mut self, start: usize) -> Result<(bool, Test)> {
        let next = self.chars.get(self.at + 1).copied();
        match (self.chars.get(self.at).copied(), next) {
            (Some('='), _) => return self.after(1, Test::Equal),
            (Some('!'), Some('=')) => return self.after(2, Test::NotEqual),
            (Some('>'), Some('=')) => return self.after(2, |v| Test::Compare(Order::GreaterOrEqual, v)),
            (Some('<'), Some('=')) => return self.after(2, |v| Test::Compare(Order::LessOrEqual, v)),
            (Some('>'), _) => return self.after(1, |v| Test::Compare(Order::Greater, v)),
            (Some('<'), _) => return self.after(1, |v| Test::Compare(Order::Less, v)),
            _ => {}
        }
        for (words, negated, test) in [
            (&["EXISTS"][..], false, Test::Exists),
            (&["NOT", "EXISTS"], true, Test::Exists),
            (&["IS", "NULL"], false, Test::Null),
            (&["IS", "NOT", "NULL"], true, Test::Null),
            (&["IS", "EMPTY"], false, Test::Empty),
            (&["IS", "NOT", "EMPTY"], true, Test::Empty),
        ] {
            if self.keywords(words) {
                return Ok((negated, test));
            }
        }
        for (words, negated) in [(&["IN"][..], false), (&["NOT", "IN"], true)] {
            if self.keywords(words) {
                return Ok((negated, self.list()?));
            }
        }
        for (words, negated) in [(&["STARTS", "WITH"][..], false), (&["NOT", "STARTS", "WITH"], true)] {
            if self.keywords(words) {
                return Ok((negated, Test::StartsWith(self.operand()?)));
            }
        }
        let before = self.at;
        if self.keywords(&["CONTAINS"]) || self.keywords(&["NOT", "CONTAINS"]) {
            let to = self.at;
            self.at = before;
            let from = to - "CONTAINS".len();
            let why = "Using `CONTAINS` in a filter requires enabling the `contains filter` experimental feature. See https://github.com/orgs/meilisearch/discussions/763";
            return Err(ApiError { code: "feature_not_enabled", ..self.error(why, from, to) });
        }
        if self.at < self.chars.len()
            && let Ok(from) = self.operand()
            && self.keyword("TO")
            && let Ok(to) = self.operand()
        {
            return Ok((false, Test::Between(from, to)));
        }
        Err(self.no_operation(start))
    }

    fn after(&mut self, length: usize, test: impl Fn(Operand) -> Test) -> Result<(bool, Test)> {
        self.at += length;
        Ok((false, test(self.operand()?)))
    }

    fn list(&mut self) -> Result<Test> {
        self.space();
        if self.chars.get(self.at) != Some(&'[') {
            return Err(self.error("Expected `[` after `IN` keyword.", self.at, self.chars.len()));
        }
        self.at += 1;
        let mut values = Vec::new();
        loop {
            self.space();
            match self.chars.get(self.at) {
                Some(']') => break,
                None => {
                    let why = "Expected matching `]` after the list of field names given to `IN[`";
                    return Err(self.error(why, self.at, self.at));
                }
                Some(_) => values.push(self.operand()?),
            }
            match self.chars.get(self.at) {
                Some(',') => self.at += 1,
                Some(']') => {}
                _ => {
                    let why = "Expected matching `]` after the list of field names given to `IN[`";
                    return Err(self.error(why, self.at, self.chars.len()));
                }
            }
        }
        self.at += 1;
        self.space();
        let strings = values.iter().map(|value| value.normalized.clone()).collect();
        let numbers = values.iter().filter_map(|value| value.number.map(number_key)).collect();
        Ok(Test::In(values, strings, numbers))
    }
}

fn is_value_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | '.')
}

fn operand(text: String) -> Operand {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    Operand { normalized: normalize_facet(&text), number, text }
}

fn number_key(number: f64) -> u64 {
    if number == 0.0 { 0 } else { number.to_bits() }
}

impl Operand {
    fn equals(&self, facts: &Facts) -> bool {
        self.number.is_some_and(|number| facts.numbers.contains(&number))
            || facts.strings.iter().any(|(text, _)| *text == self.normalized)
    }

    fn compares(&self, order: Order, facts: &Facts) -> bool {
        self.number.is_some_and(|bound| {
            facts.numbers.iter().any(|number| match order {
                Order::Greater => *number > bound,
                Order::GreaterOrEqual => *number >= bound,
                Order::Less => *number < bound,
                Order::LessOrEqual => *number <= bound,
            })
        }) || facts.strings.iter().any(|(text, _)| match order {
            Order::Greater => *text > self.normalized,
            Order::GreaterOrEqual => *text >= self.normalized,
            Order::Less => *text < self.normalized,
            Order::LessOrEqual => *text <= self.normalized,
        })
    }
}

impl Filter {
    /// Whether the document passes.
    pub fn passes(&self, doc: &Doc) -> bool {
        match self {
            Filter::And(items) => items.iter().all(|item| item.passes(doc)),
            Filter::Or(items) => items.iter().any(|item| item.passes(doc)),
            Filter::Not(inner) => !inner.passes(doc),
            Filter::Condition(condition) => condition.passes(doc),
        }
    }

    /// Checks that each attribute is filterable.
    pub fn check(&self, settings: &Settings, wording: Wording<'_>) -> Result<()> {
        let mut shown = String::new();
        let mut failing = None;
        self.show(settings, &mut shown, &mut failing);
        let Some((condition, at)) = failing else { return Ok(()) };
        let names: Vec<String> = settings.filterable_names().iter().map(|name| format!("`{name}`")).collect();
        let available = match names.is_empty() {
            true => "This index does not have configured filterable attributes.".to_owned(),
            false => format!("Available filterable attribute patterns are: {}.", names.join(", ")),
        };
        let (source, from, to) = match wording.canonical {
            true => (shown, at, at + condition.attribute.chars().count()),
            false => (condition.source.clone(), condition.span.0, condition.span.1),
        };
        let index = wording.index.map(|uid| format!("Index `{uid}`: ")).unwrap_or_default();
        let attribute = &condition.attribute;
        let text =
            format!("{index}Attribute `{attribute}` is not filterable. {available}\n{}:{} {source}", from + 1, to + 1);
        Err(ApiError::new(wording.code, text))
    }

    /// Writes the filter as it was understood, and notes the first condition on an attribute that is not filterable,
    /// with the place of the attribute in characters.
    fn show<'f>(&'f self, settings: &Settings, out: &mut String, failing: &mut Option<(&'f Condition, usize)>) {
        let mut joined = |items: &'f [Filter], word: &str, out: &mut String| {
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { word } else { "" });
                out.push('(');
                item.show(settings, out, failing);
                out.push(')');
            }
        };
        match self {
            Filter::And(items) => joined(items, " AND ", out),
            Filter::Or(items) => joined(items, " OR ", out),
            Filter::Not(inner) => {
                out.push_str("NOT (");
                inner.show(settings, out, failing);
                out.push(')');
            }
            Filter::Condition(condition) => {
                if failing.is_none() && !settings.is_filterable(&condition.attribute) {
                    *failing = Some((condition, out.chars().count() + 1));
                }
                out.push_str(&format!("{:?} {}", condition.attribute, condition.test));
            }
        }
    }
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Test::Equal(value) => write!(f, "= {:?}", value.text),
            Test::NotEqual(value) => write!(f, "!= {:?}", value.text),
            Test::Compare(Order::Greater, value) => write!(f, "> {:?}", value.text),
            Test::Compare(Order::GreaterOrEqual, value) => write!(f, ">= {:?}", value.text),
            Test::Compare(Order::Less, value) => write!(f, "< {:?}", value.text),
            Test::Compare(Order::LessOrEqual, value) => write!(f, "<= {:?}", value.text),
            Test::Between(from, to) => write!(f, "{:?} TO {:?}", from.text, to.text),
            Test::In(values, ..) => {
                let values: Vec<String> = values.iter().map(|value| format!("{:?}", value.text)).collect();
                write!(f, "IN [{}]", values.join(", "))
            }
            Test::Exists => f.write_str("EXISTS"),
            Test::Null => f.write_str("IS NULL"),
            Test::Empty => f.write_str("IS EMPTY"),
            Test::StartsWith(value) => write!(f, "STARTS WITH {:?}", value.text),
        }
    }
}

impl Condition {
    fn passes(&self, doc: &Doc) -> bool {
        let Some(facts) = doc.facts(&self.attribute) else { return matches!(self.test, Test::NotEqual(_)) };
        match &self.test {
            Test::Equal(value) => value.equals(facts),
            Test::NotEqual(value) => !value.equals(facts),
            Test::Compare(order, value) => value.compares(*order, facts),
            Test::Between(from, to) => {
                let numbers = from.number.zip(to.number);
                numbers.is_some_and(|(from, to)| facts.numbers.iter().any(|n| (from..=to).contains(n)))
                    || facts.strings.iter().any(|(text, _)| (&from.normalized..=&to.normalized).contains(&text))
            }
            Test::In(_, strings, numbers) => {
                facts.strings.iter().any(|(text, _)| strings.contains(text))
                    || facts.numbers.iter().any(|number| numbers.contains(&number_key(*number)))
            }
            Test::Exists => true,
            Test::Null => facts.null,
            Test::Empty => facts.empty,
            Test::StartsWith(value) => facts.strings.iter().any(|(text, _)| text.starts_with(&value.normalized)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse_text(text, "invalid_search_filter").expect_err("the filter is wrong").message
    }

    #[test]
    fn errors_name_the_place() {
        assert_eq!(refusal("n = "), "Was expecting a value but instead got nothing.\n5:5 n = ");
        assert!(refusal("n = 1 n").ends_with("\n7:8 n = 1 n"));
        assert!(refusal("n EXISTS EXISTS").ends_with("\n9:16 n EXISTS EXISTS"));
        assert!(refusal("(n = 1").ends_with("missing the following closing delimiter: `)`.\n1:7 (n = 1"));
        assert!(refusal("n = 1 AND").ends_with("but instead got nothing.\n10:10 n = 1 AND"));
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_crash() {
        let deep = format!("{}n = 1{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(parse_text(&deep, "invalid_search_filter").is_err());
        assert!(parse_text(&"NOT ".repeat(100_000), "invalid_search_filter").is_err());
    }
}
