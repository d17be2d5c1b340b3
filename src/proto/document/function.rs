//! A client's function that edits documents, wrapped so that the mesh's own field is neither seen nor lost.
//!
//! Nodes run a script (Rhai) with the document in `doc`, and take what `doc` is at the end. A [`Function`] is such a script taken
//! apart as far as wrapping needs: it runs in a block of its own on a document without the field, which is put back behind it.
//!
//! | the script | how it is wrapped |
//! | --- | --- |
//! | without `return` outside functions | as it is, in a block |
//! | with it, which would also leave the block | as a text that is evaluated there; `return` ends only that |
//! | functions | before the block, because neither may hold any |
//!
//! The rule: a script that a node takes does the same wrapped, or is refused ([`FunctionError`]). Only an `exit` that it makes up while
//! it runs can't be seen before: that is an error then. In no case is the field lost or changed. Lines stay
//! where they are or move by a known number, so that [`own_message`] can tell a client its own places. Must not know: nodes.

use std::borrow::Cow;
use std::ops::Range;

use crate::types::SHARD_FIELD;
use crate::types::ShardId;

/// Functions that a node allows in one script.
const FUNCTIONS_MAX: usize = 30;

/// What stands before the block: `exit` would leave it with the document as it was.
const NO_EXIT: &str = "fn exit() { throw \"`exit` is not supported by miroir\" } fn exit(x) { exit() } ";

/// Why a script can't be wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FunctionError {
    /// It can't be taken apart.
    #[error("the function can't be read")]
    Unreadable,
    /// It ends itself where nothing can be put behind it.
    #[error("`exit` is not supported by miroir: write the function so that it ends without it")]
    Exit,
    /// It would be called in place of the map's own.
    #[error("a function can't define `remove`: give it another name")]
    Remove,
    /// A text that is evaluated can't hold closures.
    #[error(
        "`return` outside functions and closures is not supported together with closures: write the function without `return`"
    )]
    ReturnBesideClosure,
}

/// A client's script; cheap to wrap again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its functions where they stand, blanks in place of all else.
    functions: String,
    /// All else, blanks in place of functions and comments.
    rest: String,
    /// `return` stands in `rest` outside closures.
    returns: bool,
    /// How many functions it has, closures included.
    count: usize,
}

impl Function {
    /// Takes a script apart that a node can compile.
    ///
    /// # Errors
    /// [`FunctionError`].
    pub fn parse(script: &str) -> Result<Self, FunctionError> {
        let Scan { tokens, comments } = scan(script).ok_or(FunctionError::Unreadable)?;
        let calls_exit = |(at, token): (usize, &Token<'_>)| {
            let next = |by: usize| tokens.get(at + by).map(|token| token.kind);
            token.kind == Kind::Word("exit")
                && (next(1) == Some(Kind::Open) || next(1) == Some(Kind::Sign('!')) && next(2) == Some(Kind::Open))
        };
        if tokens.iter().enumerate().any(calls_exit) {
            return Err(FunctionError::Exit);
        }
        let spans = functions(&tokens).ok_or(FunctionError::Unreadable)?;
        let (mut texts, mut own) = (Vec::new(), Vec::new());
        let mut from = 0;
        for span in &spans {
            let name = tokens[span.clone()].iter().take_while(|token| token.kind != Kind::Open).last();
            if name.is_some_and(|name| name.kind == Kind::Word("remove")) {
                return Err(FunctionError::Remove);
            }
            texts.push(tokens[span.start].at.start..tokens[span.end - 1].at.end);
            own.extend_from_slice(&tokens[from..span.start]);
            from = span.end;
        }
        own.extend_from_slice(&tokens[from..]);
        let closures = closures(&own).ok_or(FunctionError::Unreadable)?;
        let mut covered = 0;
        let mut bodies = closures.iter().flatten().peekable();
        let returns = own.iter().enumerate().any(|(at, token)| {
            while let Some(body) = bodies.next_if(|body| body.start <= at) {
                covered = covered.max(body.end);
            }
            token.kind == Kind::Word("return") && at >= covered
        });
        if returns && !closures.is_empty() {
            return Err(FunctionError::ReturnBesideClosure);
        }
        let inner: usize = spans.iter().filter_map(|span| Some(self::closures(&tokens[span.clone()])?.len())).sum();
        let mut hidden: Vec<_> = comments.iter().chain(&texts).cloned().collect();
        hidden.sort_unstable_by_key(|range| range.start);
        Ok(Self {
            functions: only(script, &outside(&texts, &comments)).trim_end().to_owned(),
            rest: without(script, &hidden),
            returns,
            count: spans.len() + inner + closures.len(),
        })
    }

    /// The script for the documents of one shard.
    pub fn wrapped(&self, shard: ShardId) -> String {
        let mut out = String::with_capacity(self.functions.len() + self.rest.len() + 400);
        if !self.functions.is_empty() {
            out.push_str(&self.functions);
            out.push('\n');
        }
        // One too many would not compile; without these two, `exit` changes nothing.
        if self.count + 2 <= FUNCTIONS_MAX {
            out.push_str(NO_EXIT);
        }
        out.push_str(&opening());
        if self.returns {
            out.push_str(EVAL);
            quote(&evaluated(&self.rest), &mut out);
            out.push_str("\");");
        } else {
            out.push('\n');
            out.push_str(&self.rest);
            out.push('\n');
            // What the script ends with need not end with a semicolon.
            out.push(';');
        }
        out.push_str(" doc };\nif type_of(doc) == \"map\" { doc.");
        out.push_str(SHARD_FIELD);
        out.push_str(" = \"");
        out.push(shard.letter());
        out.push_str("\"; }");
        out
    }
}

/// How the block begins, which is the last of its line or stands before [`EVAL`].
fn opening() -> String {
    format!("doc = {{ let doc = doc; doc.remove(\"{SHARD_FIELD}\");")
}

/// How a text is evaluated.
const EVAL: &str = " eval(\"";

/// An error of a node about a wrapped script, as it would be about the client's own.
pub fn own_message(wrapped: &str, message: &str) -> String {
    let opening = opening();
    let head = wrapped.lines().enumerate().find_map(|(before, line)| Some((before, line, line.find(&opening)?)));
    let Some((before, line, at)) = head else { return message.to_owned() };
    let message = without_field(message);
    let upto = at + opening.len();
    if line[upto..].starts_with(EVAL) {
        let place = line[..upto].chars().count() + EVAL.len();
        let call = format!("\nin call to function 'eval' (line {}, position {place})", before + 1);
        return message.strip_suffix(call.as_str()).unwrap_or(&message).to_owned();
    }
    lines_less(&message, before + 1)
}

/// A message that quotes a document, without the mesh's field.
fn without_field(message: &str) -> Cow<'_, str> {
    let name = format!("\"{SHARD_FIELD}\":\"");
    let Some(at) = message.find(&name) else { return Cow::Borrowed(message) };
    let after = &message[at + name.len()..];
    let mut letters = after.chars();
    let Some(rest) = letters.next().and_then(ShardId::of_letter).and_then(|_| letters.as_str().strip_prefix('"'))
    else {
        return Cow::Borrowed(message);
    };
    let before = &message[..at];
    Cow::Owned(match (rest.strip_prefix(','), before.strip_suffix(',')) {
        (Some(rest), _) => [before, rest].concat(),
        (None, Some(before)) => [before, rest].concat(),
        (None, None) => [before, rest].concat(),
    })
}

/// Places `(line 5, position 2)` so many lines up. What is above them all stays.
fn lines_less(message: &str, by: usize) -> String {
    const LINE: &str = "(line ";
    let mut parts = message.split(LINE);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(LINE);
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        match part[..digits].parse::<usize>() {
            Ok(line) if line > by && part[digits..].starts_with(", position ") => {
                out.push_str(&(line - by).to_string());
                out.push_str(&part[digits..]);
            }
            _ => out.push_str(part),
        }
    }
    out
}

/// A text to be evaluated whose first line is not cut off: blanks before the first word would be.
fn evaluated(rest: &str) -> Cow<'_, str> {
    match rest.chars().next() {
        Some('\n' | '\r') => Cow::Owned(format!(";{rest}")),
        Some(first) if first.is_whitespace() => Cow::Owned(format!(";{}", &rest[first.len_utf8()..])),
        _ => Cow::Borrowed(rest),
    }
}

/// The inside of a text literal.
fn quote(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
}

/// A text with blanks in place of these parts; lines stay lines.
fn without(text: &str, parts: &[Range<usize>]) -> String {
    let (mut out, mut from) = (String::with_capacity(text.len()), 0);
    for part in parts {
        if part.start < from {
            continue;
        }
        out.push_str(&text[from..part.start]);
        blank(&text[part.clone()], &mut out);
        from = part.end;
    }
    out.push_str(&text[from..]);
    out
}

/// A text with blanks in place of all but these parts.
fn only(text: &str, parts: &[Range<usize>]) -> String {
    let (mut out, mut from) = (String::with_capacity(text.len()), 0);
    for part in parts {
        blank(&text[from..part.start], &mut out);
        out.push_str(&text[part.clone()]);
        from = part.end;
    }
    blank(&text[from..], &mut out);
    out
}

/// What of these parts none of the others covers, which lie inside or outside of each whole.
fn outside(parts: &[Range<usize>], others: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut left = Vec::new();
    for part in parts {
        let mut from = part.start;
        let first = others.partition_point(|other| other.start < part.start);
        for other in others[first..].iter().take_while(|other| other.end <= part.end) {
            left.push(from..other.start);
            from = other.end;
        }
        left.push(from..part.end);
    }
    left
}

fn blank(text: &str, out: &mut String) {
    out.extend(text.chars().map(|c| if matches!(c, '\n' | '\r') { c } else { ' ' }));
}

/// What a token is, as far as wrapping must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind<'a> {
    Word(&'a str),
    /// A number, a text, a letter.
    Literal,
    /// `(`, `[`
    Open,
    /// `)`, `]`
    Close,
    /// `{`, also of `#{` and `${`
    OpenBrace,
    CloseBrace,
    /// `||`
    Bars,
    Sign(char),
}

#[derive(Debug, Clone)]
struct Token<'a> {
    kind: Kind<'a>,
    /// In bytes.
    at: Range<usize>,
}

#[derive(Debug, Default)]
struct Scan<'a> {
    tokens: Vec<Token<'a>>,
    comments: Vec<Range<usize>>,
}

/// Takes a script apart; `None` if it is not closed where it must be.
fn scan(script: &str) -> Option<Scan<'_>> {
    let bytes = script.as_bytes();
    let mut found = Scan::default();
    // What is open; a brace that ends a part of a text goes on with the text.
    let mut open: Vec<u8> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        let rest = &bytes[at..];
        let kind = match byte {
            b'/' if rest.starts_with(b"//") => {
                at += rest.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(rest.len());
                found.comments.push(start..at);
                continue;
            }
            b'/' if rest.starts_with(b"/*") => {
                at += comment(rest);
                found.comments.push(start..at);
                continue;
            }
            b'"' | b'\'' => {
                at += 1 + quoted(&rest[1..], byte)?;
                Kind::Literal
            }
            b'#' if rest.iter().find(|b| **b != b'#') == Some(&b'"') => {
                at += raw(rest)?;
                Kind::Literal
            }
            b'`' => {
                let (length, opens) = text(&rest[1..])?;
                at += 1 + length;
                if opens {
                    found.tokens.push(Token { kind: Kind::Literal, at: start..at });
                    open.push(b'`');
                    Kind::OpenBrace
                } else {
                    Kind::Literal
                }
            }
            b'{' | b'(' | b'[' => {
                open.push(byte);
                at += 1;
                if byte == b'{' { Kind::OpenBrace } else { Kind::Open }
            }
            b'}' if open.last() == Some(&b'`') => {
                found.tokens.push(Token { kind: Kind::CloseBrace, at: at..at + 1 });
                let (length, opens) = text(&rest[1..])?;
                at += 1 + length;
                if opens {
                    found.tokens.push(Token { kind: Kind::Literal, at: start..at });
                    Kind::OpenBrace
                } else {
                    open.pop();
                    Kind::Literal
                }
            }
            b'}' | b')' | b']' => {
                let opened = open.pop()?;
                if !matches!((opened, byte), (b'{', b'}') | (b'(', b')') | (b'[', b']')) {
                    return None;
                }
                at += 1;
                if byte == b'}' { Kind::CloseBrace } else { Kind::Close }
            }
            b'0'..=b'9' => {
                at += word(rest);
                Kind::Literal
            }
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                at += word(rest);
                Kind::Word(&script[start..at])
            }
            b'|' if rest.starts_with(b"||") => {
                at += 2;
                Kind::Bars
            }
            _ => {
                let c = script[at..].chars().next()?;
                at += c.len_utf8();
                if c.is_whitespace() {
                    continue;
                }
                Kind::Sign(c)
            }
        };
        found.tokens.push(Token { kind, at: start..at });
    }
    open.is_empty().then_some(found)
}

fn word(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count()
}

/// The length of a comment, which may hold others, and need not end.
fn comment(bytes: &[u8]) -> usize {
    let (mut level, mut at) = (0_usize, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (level, at) = (level + 1, at + 2),
            [b'*', b'/', ..] => (level, at) = (level - 1, at + 2),
            _ => at += 1,
        }
        if level == 0 {
            break;
        }
    }
    at
}

/// The length of a text behind its first quote.
fn quoted(bytes: &[u8], quote: u8) -> Option<usize> {
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            b'\\' => at += 2,
            b if b == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// The length of `##"text"##`.
fn raw(bytes: &[u8]) -> Option<usize> {
    let marks = bytes.iter().take_while(|b| **b == b'#').count();
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', marks)).collect();
    let from = marks + 1;
    Some(from + memchr::memmem::find(&bytes[from..], &end)? + end.len())
}

/// The length of a text in backticks to its end, or to the end of the next `${`.
fn text(bytes: &[u8]) -> Option<(usize, bool)> {
    let mut at = 0;
    loop {
        match &bytes[at..] {
            [b'`', b'`', ..] => at += 2,
            [b'`', ..] => return Some((at + 1, false)),
            [b'$', b'{', ..] => return Some((at + 2, true)),
            [] => return None,
            _ => at += 1,
        }
    }
}

/// Behind the bracket that closes the one at `from`.
fn closed(tokens: &[Token<'_>], from: usize) -> Option<usize> {
    let mut level = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.kind {
            Kind::Open | Kind::OpenBrace => level += 1,
            Kind::Close | Kind::CloseBrace => level = level.checked_sub(1)?,
            _ => {}
        }
        if level == 0 {
            return Some(at + 1);
        }
    }
    None
}

/// Where the functions stand, in tokens; they can be at the top only.
fn functions(tokens: &[Token<'_>]) -> Option<Vec<Range<usize>>> {
    let (mut spans, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if tokens[at].kind != Kind::Word("fn") {
            at += 1;
            continue;
        }
        let private = at > 0 && tokens[at - 1].kind == Kind::Word("private");
        let body = (at..tokens.len()).find(|at| tokens[*at].kind == Kind::OpenBrace)?;
        let end = closed(tokens, body)?;
        spans.push(at - usize::from(private)..end);
        at = end;
    }
    Some(spans)
}

/// The closures, with the span of each one's body if braces tell it.
fn closures(tokens: &[Token<'_>]) -> Option<Vec<Option<Range<usize>>>> {
    // Behind these an operand begins, so that a bar opens a closure; elsewhere it is an operator.
    const BEGIN: [&str; 10] = ["return", "throw", "in", "if", "while", "until", "else", "switch", "do", "loop"];
    let begins = |at: usize| match at.checked_sub(1).map(|before| tokens[before].kind) {
        None | Some(Kind::Open | Kind::OpenBrace | Kind::Sign(_) | Kind::Bars) => true,
        Some(Kind::Word(word)) => BEGIN.contains(&word),
        Some(Kind::Literal | Kind::Close | Kind::CloseBrace) => false,
    };
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let body = match tokens[at].kind {
            Kind::Bars if begins(at) => at + 1,
            Kind::Sign('|') if begins(at) => {
                let end = (at + 1..tokens.len()).find(|at| tokens[*at].kind == Kind::Sign('|'))?;
                end + 1
            }
            _ => {
                at += 1;
                continue;
            }
        };
        let braces = tokens.get(body).is_some_and(|token| token.kind == Kind::OpenBrace);
        found.push(if braces { Some(body..closed(tokens, body)?) } else { None });
        at = body;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: ShardId = ShardId(3);

    fn of(script: &str) -> Function {
        Function::parse(script).unwrap_or_else(|e| panic!("{script}: {e}"))
    }

    fn error(script: &str) -> FunctionError {
        Function::parse(script).unwrap_err()
    }

    #[test]
    fn a_plain_script_stands_in_a_block_on_lines_of_its_own() {
        assert_eq!(
            of("doc.n += 1").wrapped(S),
            "fn exit() { throw \"`exit` is not supported by miroir\" } fn exit(x) { exit() } doc = { let doc = doc; \
             doc.remove(\"_miroir_shard\");\ndoc.n += 1\n; doc };\nif type_of(doc) == \"map\" { doc._miroir_shard = \"\u{a003}\"; }"
        );
    }

    #[test]
    fn a_script_that_returns_is_a_text() {
        let wrapped = of(" if doc.n == 1 { return; }\n\tdoc.s = \"a\\n\\\"\"").wrapped(S);
        let text = r#" eval("; if doc.n == 1 { return; }\n\tdoc.s = \"a\\n\\\"\"")"#.replacen("; if", ";if", 1);
        assert!(wrapped.contains(&text), "{wrapped}");
        assert!(of("\n\nreturn").wrapped(S).contains(r#" eval(";\n\nreturn");"#));
    }

    #[test]
    fn functions_stand_before_all_else_on_their_lines() {
        let f = of(
            "let a = 1;\nprivate fn f(x) { if x { return 1; } `}${ `{` }` } a += f(\n1); fn int.g() { \"}\" }\n// fn\na",
        );
        assert_eq!(
            f.functions,
            "          \nprivate fn f(x) { if x { return 1; } `}${ `{` }` }        \n    fn int.g() { \"}\" }"
        );
        assert_eq!(f.rest, format!("let a = 1;\n{} a += f(\n1);{}\n     \na", " ".repeat(50), " ".repeat(19)));
        assert!(!f.returns);
        assert_eq!(f.count, 2);
    }

    #[test]
    fn comments_are_blanks_whether_they_end_or_not() {
        for (script, rest) in [
            ("doc.n = 1 // x", "doc.n = 1     "),
            ("doc.n = 1 /* x", "doc.n = 1     "),
            ("/* a /* b */ } */doc", "                 doc"),
            ("doc./*é*/n\n// \"\n=1", "doc.     n\n    \n=1"),
            ("a// x\rb", "a    \rb"),
            ("\"// /*\" + `/* ${1 // \n}`", "\"// /*\" + `/* ${1    \n}`"),
            ("#\"/*\"# + '\\'' + '\"'", "#\"/*\"# + '\\'' + '\"'"),
        ] {
            assert_eq!(of(script).rest, rest, "{script}");
        }
    }

    #[test]
    fn a_return_counts_outside_functions_and_closures_only() {
        for (script, returns) in [
            ("return", true),
            ("if a || b { return 1 }", true),
            ("`${ return }`", true),
            ("doc.returns = \"return\" // return", false),
            ("fn f() { return 1 } f()", false),
            ("a.map(|x| { return x })", false),
            ("let f = || { if a | b { return 1 } };", false),
            ("let f = |a, b| { || { return 1 } };", false),
        ] {
            assert_eq!(of(script).returns, returns, "{script}");
        }
        for script in
            ["let f = |x| x; return", "let f = |x| return x;", "return || 1", "a.map(|x| { x }); if a { return }"]
        {
            assert_eq!(error(script), FunctionError::ReturnBesideClosure, "{script}");
        }
    }

    #[test]
    fn what_leaves_the_block_or_breaks_it_is_refused() {
        for script in ["exit()", "a.exit (1)", "exit /**/ !()", "fn f() { exit() } f()", "fn exit() {}", "`${exit()}`"]
        {
            assert_eq!(error(script), FunctionError::Exit, "{script}");
        }
        for script in ["doc.exit = 1", "\"exit()\"", "// exit()", "exits()", "exit != (1)"] {
            of(script);
        }
        for script in ["fn remove(x) {}", "fn map . remove(x) {}", "1; private fn remove() {}"] {
            assert_eq!(error(script), FunctionError::Remove, "{script}");
        }
        of("doc.remove(\"a\"); fn removes() { doc.remove(1) }");
        for script in
            ["}", "{", "( }", "} foo {", "\"", "`", "`${", "`${ } ", "'", "#\"", "fn", "fn f(", "|", "let f = |x"]
        {
            assert_eq!(error(script), FunctionError::Unreadable, "{script}");
        }
    }

    #[test]
    fn there_is_no_function_too_many() {
        let many = |n: usize| (0..n).map(|i| format!("fn f{i}() {{ || 1 }} ")).collect::<String>();
        assert!(of(&many(14)).wrapped(S).contains("fn exit"));
        assert!(!of(&format!("{}let a = || 1;", many(14))).wrapped(S).contains("fn exit"));
    }

    #[test]
    fn places_in_messages_are_the_clients() {
        let message = |script: &str, text: &str| own_message(&of(script).wrapped(S), text);
        assert_eq!(message("a", "x (line 2, position 3)"), "x (line 1, position 3)");
        assert_eq!(message("a", "x (line 1, position 3) (line 2"), "x (line 1, position 3) (line 2");
        let functions = "fn f() { }\n\na";
        assert_eq!(
            message(functions, "x (line 5, position 1)\nin (line 1, position 2)"),
            "x (line 3, position 1)\nin (line 1, position 2)"
        );
        let place = NO_EXIT.len() + opening().len() + EVAL.len();
        let call = format!("\nin call to function 'eval' (line 1, position {place})");
        assert_eq!(message("return x", &format!("x (line 1, position 8){call}")), "x (line 1, position 8)");
        let theirs = "x\nin call to function 'eval' (line 3, position 6)";
        assert_eq!(message("return x", theirs), theirs);
        assert_eq!(own_message("doc", "x (line 9, position 1)"), "x (line 9, position 1)");
    }

    #[test]
    fn a_document_in_a_message_is_without_the_field() {
        let wrapped = of("a").wrapped(S);
        for (theirs, ours) in [
            ("`{\"_miroir_shard\":\"\u{a003}\"}`.", "`{}`."),
            ("`{\"_miroir_shard\":\"\u{a003}\",\"b\":1}`.", "`{\"b\":1}`."),
            ("`{\"A\":1,\"_miroir_shard\":\"\u{a003}\"}`.", "`{\"A\":1}`."),
            ("`{\"_miroir_shard\":\"x\"}`.", "`{\"_miroir_shard\":\"x\"}`."),
        ] {
            assert_eq!(own_message(&wrapped, theirs), ours);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(parts in prop::collection::vec(prop::sample::select(vec![
            "\"", "'", "`", "${", "{", "}", "(", ")", "#", "#{", "/*", "*/", "//", "\n", "\r", "\\", "|", "||", "fn ", "f", "private ",
            "return ", "exit", "é", "\u{3000}", " ", ";", "remove", "1",
        ]), 0..24)) {
            let script = parts.concat();
            if let Ok(function) = Function::parse(&script) {
                // Nothing moves: each line is as long, and holds each letter once.
                let lines = |text: &str| text.split('\n').map(|line| line.chars().count()).collect::<Vec<_>>();
                prop_assert_eq!(lines(&function.rest), lines(&script));
                let own = own_message(&function.wrapped(S), &script);
                prop_assert!(own.chars().count() <= script.chars().count());
            }
        }
    }
}
