//! Reads the sources and holds what no compiler holds: which room may use which, what each file opens with, and that
//! nothing is left over.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const SIDE: [&str; 5] = ["config", "names", "pki", "rt", "telemetry"];

/// Every room with the rooms that it may use, lowest first. `types`, `wire` and `proto` never enter a side room, `store`
/// and `net` never meet, and `api` sees neither.
const ROOMS: [(&str, &[&str], bool); 15] = [
    ("types", &[], false),
    ("wire", &["types"], false),
    ("proto", &["types", "wire"], false),
    ("store", &["types", "wire", "proto"], true),
    ("net", &["types", "wire", "proto"], true),
    ("services", &["types", "wire", "proto", "store", "net"], true),
    ("api", &["types", "wire", "proto", "services"], true),
    ("app", &["types", "wire", "proto", "store", "net", "services", "api"], true),
    ("cli", &["types", "wire", "proto", "store", "net", "services", "api", "app"], true),
    ("config", &["types"], false),
    ("ctl", &["types", "config", "names"], false),
    ("names", &["types"], false),
    ("pki", &["types"], false),
    ("rt", &["types"], false),
    ("telemetry", &["types"], false),
];

/// Crates that only some rooms may name, so that each can be replaced in one place.
const OWNED: [(&str, &[&str]); 9] = [
    ("bincode", &["wire/codec.rs"]),
    ("rusqlite", &["store/"]),
    ("lz4_flex", &["store/"]),
    ("quinn", &["net/"]),
    ("chitchat", &["net/"]),
    ("hickory_resolver", &["names"]),
    ("rcgen", &["pki/"]),
    ("prometheus", &["telemetry/"]),
    ("axum", &["api/", "app"]),
];

/// What a pure room may not touch: async, the operating system, clocks, entropy, maps in hash order.
const IMPURE: [&str; 14] = [
    "tokio",
    "async",
    "HashMap",
    "HashSet",
    "SystemTime",
    "Instant::now",
    "std::fs",
    "std::env",
    "std::thread",
    "TcpStream",
    "UdpSocket",
    "rand",
    "prometheus",
    "new_v4",
];

/// Words of unfinished work.
const LEFTOVERS: [&str; 9] =
    ["todo!", "unimplemented!", "dbg!", "FIXME", "TODO", "XXX", "HACK", "#[ignore]", "for now"];

struct Source {
    /// From the repository's root.
    path: String,
    text: String,
    /// The text without comments and without the insides of strings.
    code: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files under a folder whose names end so.
fn files(under: &str, ending: &str) -> Vec<Source> {
    let mut out = Vec::new();
    let mut waiting = vec![root().join(under)];
    while let Some(dir) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                waiting.push(entry);
            } else if entry.to_string_lossy().ends_with(ending) {
                let text = fs::read_to_string(&entry).unwrap();
                let path = entry.strip_prefix(root()).unwrap().display().to_string();
                let code = if ending == ".rs" { bare(&text) } else { text.clone() };
                out.push(Source { path, code, text });
            }
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

fn rust() -> Vec<Source> {
    let mut all = files("src", ".rs");
    assert!(all.len() > 20, "the sources are where they are looked for");
    for folder in ["netsim", "tests", "benches"] {
        all.extend(files(folder, ".rs"));
    }
    all
}

/// Takes out comments and the insides of strings, and keeps the lines.
fn bare(text: &str) -> String {
    strip(text, true)
}

/// Takes out the insides of strings, and comments if told so.
fn strip(text: &str, comments: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let chars: Vec<char> = text.chars().collect();
    let mut i = 0;
    while i < chars.len() {
        let rest = &chars[i..];
        let end = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => {
                (2..rest.len()).find(|j| rest[*j - 1] == '*' && rest[*j] == '/').map_or(rest.len(), |j| j + 1)
            }
            ['r', '#' | '"', ..] if i == 0 || !is_word(chars[i - 1]) => raw_string(rest).unwrap_or(0),
            ['"', ..] => string(rest),
            ['\'', '\\', ..] => rest.iter().skip(3).position(|c| *c == '\'').map_or(1, |p| p + 4),
            ['\'', _, '\'', ..] => 3,
            _ => 0,
        };
        if end == 0 {
            out.push(chars[i]);
            i += 1;
        } else if !comments && matches!(rest, ['/', '/' | '*', ..]) {
            out.extend(&rest[..end]);
            i += end;
        } else {
            out.push(' ');
            out.extend(rest[..end].iter().filter(|c| **c == '\n'));
            i += end;
        }
    }
    out
}

/// The length of a raw string at the start, if there is one.
fn raw_string(rest: &[char]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return None;
    }
    let closes = |j: &usize| rest[*j] == '"' && rest[j + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    Some((2 + hashes..rest.len()).find(closes).map_or(rest.len(), |j| j + 1 + hashes))
}

fn string(rest: &[char]) -> usize {
    let mut i = 1;
    while i < rest.len() && rest[i] != '"' {
        i += if rest[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(rest.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands in `code` as a word of its own, as byte positions.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let whole = |at: &usize| {
        let before = code[..*at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !(before.is_some_and(is_word) || after.is_some_and(is_word) && word.ends_with(is_word))
    };
    code.match_indices(word).map(|(at, _)| at).filter(whole)
}

fn line(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The first names after each `crate::` (or `miroir::`), also of a list in braces, with their lines.
fn rooms_named(code: &str, krate: &str) -> Vec<(String, usize)> {
    let mut out = Vec::new();
    for at in words(code, krate) {
        let Some(rest) = code[at + krate.len()..].trim_start().strip_prefix("::") else { continue };
        let rest = rest.trim_start();
        let name = |s: &str| s.trim_start().chars().take_while(|c| is_word(*c)).collect::<String>();
        match rest.strip_prefix('{') {
            None => out.push((name(rest), line(code, at))),
            Some(list) => {
                let (mut depth, mut begins) = (0_i32, true);
                for (i, c) in list.char_indices() {
                    if begins && !c.is_whitespace() {
                        out.push((name(&list[i..]), line(code, at)));
                        begins = false;
                    }
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => begins = true,
                        _ => {}
                    }
                }
            }
        }
    }
    out.retain(|(name, _)| !name.is_empty());
    out
}

/// The room of a file under `src/`: `None` for `lib.rs`, `main.rs` and `bin/`.
fn room_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    let name = rest.split_once('/').map_or(rest.strip_suffix(".rs")?, |(folder, _)| folder);
    ROOMS.iter().map(|(room, ..)| *room).find(|room| *room == name)
}

fn may_use(room: &str, other: &str) -> bool {
    let (_, above, sides) = ROOMS.iter().find(|(name, ..)| *name == room).expect("room_of gives rooms only");
    room == other || above.contains(&other) || (*sides && SIDE.contains(&other))
}

fn no_faults(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_room_has_its_place() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared: BTreeSet<&str> = lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let placed: BTreeSet<&str> = ROOMS.iter().map(|(room, ..)| *room).collect();
    let stray: Vec<_> = declared.difference(&placed).collect();
    assert!(stray.is_empty(), "not in the table of this test: {stray:?}");
    assert!(declared.len() >= 12, "{declared:?}");
}

#[test]
fn rooms_use_only_what_is_above_them() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for source in files("src", ".rs") {
        let Some(room) = room_of(&source.path) else { continue };
        for (name, line) in rooms_named(&source.code, "crate") {
            seen += 1;
            if ROOMS.iter().any(|(r, ..)| *r == name) && !may_use(room, &name) {
                faults.push(format!("{}:{line}: `{room}` may not use `{name}`", source.path));
            }
        }
    }
    assert!(seen > 10, "only {seen} paths were found");
    no_faults(faults);
}

#[test]
fn no_path_climbs_out_of_its_room() {
    let mut faults = Vec::new();
    for source in files("src", ".rs").iter().filter(|s| room_of(&s.path).is_some()) {
        let inner = source.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let depth = inner.split('/').count();
        let tests = source.code.find("mod tests {").unwrap_or(usize::MAX);
        for at in words(&source.code, "super").filter(|at| !source.code[..*at].ends_with("super::")) {
            let steps = source.code[at..].split("::").take_while(|s| *s == "super").count();
            if steps >= depth + usize::from(at > tests) {
                faults.push(format!("{}:{}: name another room by `crate::`", source.path, line(&source.code, at)));
            }
        }
    }
    no_faults(faults);
}

#[test]
fn the_admin_tool_stays_outside() {
    let source = fs::read_to_string(root().join("src/bin/miroir-ctl.rs")).unwrap();
    let inside = rooms_named(&bare(&source), "miroir");
    let inside: Vec<_> = inside.iter().filter(|(room, _)| ["store", "net", "proto"].contains(&room.as_str())).collect();
    assert!(inside.is_empty(), "{inside:?}");
}

#[test]
fn crates_stay_in_the_room_that_owns_them() {
    let mut faults = Vec::new();
    for source in files("src", ".rs") {
        let inner = source.path.trim_start_matches("src/");
        for (name, owners) in OWNED {
            if !owners.iter().any(|o| inner.starts_with(o))
                && let Some(at) = words(&source.code, name).find(|at| source.code[at + name.len()..].starts_with("::"))
            {
                let line = line(&source.code, at);
                faults.push(format!("{}:{line}: only {owners:?} may name `{name}`", source.path));
            }
        }
    }
    no_faults(faults);
}

#[test]
fn lower_rooms_are_pure() {
    let mut faults = Vec::new();
    for source in files("src", ".rs") {
        if matches!(room_of(&source.path), Some("types" | "wire" | "proto")) {
            let code = source.code.split("#[cfg(test)]").next().unwrap_or_default();
            for word in IMPURE {
                if let Some(at) = words(code, word).next() {
                    faults.push(format!("{}:{}: `{word}`", source.path, line(code, at)));
                }
            }
        }
    }
    no_faults(faults);
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    no_faults(
        rust()
            .iter()
            .filter(|s| !s.text.starts_with("//! "))
            .map(|s| format!("{}: does not open with `//!`", s.path))
            .collect(),
    );
}

#[test]
fn module_roots_hold_no_logic() {
    let code_lines = |s: &Source| {
        let code = s.code.split("#[cfg(test)]").next().unwrap_or_default();
        code.lines().filter(|l| !l.trim().is_empty()).count()
    };
    no_faults(
        rust()
            .iter()
            .filter(|s| s.path.ends_with("/mod.rs") && code_lines(s) > 100)
            .map(|s| format!("{}: {} lines of code in a mod.rs", s.path, code_lines(s)))
            .collect(),
    );
}

#[test]
fn nothing_is_left_over() {
    let mut faults = Vec::new();
    for source in rust().iter().filter(|s| s.path != "tests/layers.rs") {
        for word in LEFTOVERS {
            for (n, text) in strip(&source.text, false).lines().enumerate() {
                if words(text, word).next().is_some() {
                    faults.push(format!("{}:{}: `{word}`", source.path, n + 1));
                }
            }
        }
    }
    no_faults(faults);
}

#[test]
fn no_file_names_the_machine_that_it_was_written_on() {
    // Written apart, so that this file does not name them either.
    let forbidden = [concat!("/wo", "rk/"), concat!("../", "shared"), concat!("/ho", "me/")];
    let mut all = rust();
    for (folder, ending) in [("docs", ".md"), (".ci", "run")] {
        all.extend(files(folder, ending));
    }
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "Cargo.toml", "miroir.example.toml", "deny.toml"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        all.push(Source { path: name.to_owned(), code: text.clone(), text });
    }
    let mut faults = Vec::new();
    for source in &all {
        for (n, text) in source.text.lines().enumerate() {
            for word in forbidden.iter().filter(|w| text.contains(**w)) {
                // The checks may look for the data set beside the clone.
                if !(source.path == ".ci/run" && text.contains("MIROIR_DATA")) {
                    faults.push(format!("{}:{}: {word}", source.path, n + 1));
                }
            }
        }
    }
    no_faults(faults);
}

#[test]
fn the_reader_of_sources_sees_what_matters() {
    let code = bare(
        "use crate::{types::{A, B}, net::C, wire};\n// crate::store\nlet s = \"crate::api\"; let c = '\"'; crate::app::x(r#\"crate::cli \"#);",
    );
    let named: Vec<String> = rooms_named(&code, "crate").into_iter().map(|(name, _)| name).collect();
    assert_eq!(named, ["types", "net", "wire", "app"]);
    assert_eq!(rooms_named("\n\n  crate :: store::X", "crate"), [("store".to_owned(), 3)]);
    assert_eq!(bare("a /* b\n */ c 'x' '\\n' &'a str"), "a  \n c     &'a str");
    assert_eq!(strip("a(\"XXX\") // don't \"b\" FIXME\nc", false), "a( ) // don't \"b\" FIXME\nc");
    assert_eq!(words("tokio tokio_util xtokio", "tokio").count(), 1);
    assert_eq!(room_of("src/net/tls.rs"), Some("net"));
    assert_eq!(room_of("src/app.rs"), Some("app"));
    assert_eq!(room_of("src/main.rs"), None);
    assert!(may_use("services", "store") && may_use("api", "config"));
    assert!(!may_use("api", "store") && !may_use("net", "store") && !may_use("proto", "telemetry"));
    assert!(Path::new(&root()).is_dir());
}
