//! The documents and the code say the same.

use std::collections::BTreeSet;

use miroir::api::unsupported::ROUTES;
use miroir::types::ErrorCode;

const ERRORS: &str = include_str!("../docs/errors.md");
const OPERATIONS: &str = include_str!("../docs/operations.md");
const README: &str = include_str!("../README.md");

#[test]
fn every_code_of_the_mesh_has_an_anchor_and_no_other_has() {
    let ours = ErrorCode::ALL.iter().filter(|c| c.as_str().starts_with("miroir_"));
    let expected: BTreeSet<String> = ours.clone().map(|c| c.as_str().to_owned()).collect();
    let anchors = ERRORS.split("<a id=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    assert_eq!(anchors.collect::<BTreeSet<_>>(), expected);
    for code in ours {
        assert_eq!(code.link(), format!("docs/errors.md#{}", code.as_str()));
        let section = ERRORS.split(&format!("## `{}`", code.as_str())).nth(1).expect("a section for each");
        let section = section.split("\n## ").next().unwrap();
        let in_task = code.as_str() == "miroir_incomplete";
        let status = format!("</a>{}. ", code.status());
        assert!(section.contains(&status) || in_task, "{} gives its status", code.as_str());
    }
}

#[test]
fn series_that_operators_read_of_are_there() {
    let all: BTreeSet<&str> = miroir::telemetry::metrics::all().into_iter().map(|(name, ..)| name).collect();
    let named = OPERATIONS.lines().filter_map(|l| l.strip_prefix("| `miroir_")).map(|l| l.split('`').next().unwrap());
    let missing: Vec<&str> = named.filter(|name| !all.contains(format!("miroir_{name}").as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn readme_has_one_test_command_where_the_checks_look_for_it() {
    let after: Vec<&str> = README.split("<!-- test-command").skip(1).collect();
    assert_eq!(after.len(), 1);
    let block = after[0].split("```").nth(1).unwrap();
    assert_eq!(block.trim_start_matches("sh").trim(), "cargo test --workspace");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/errors.md", "docs/mesh.md", "docs/operations.md"]
    {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if !link.starts_with("https://") {
                let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = root.join(name).parent().unwrap().join(file);
                let target = std::fs::read_to_string(&target).unwrap_or_else(|e| panic!("{name}: {link}: {e}"));
                assert!(anchor.is_empty() || target.contains(&format!("id=\"{anchor}\"")), "{name}: {link}");
            }
        }
    }
}

#[test]
fn readme_lists_the_routes_that_are_not_supported_and_no_other() {
    let table = README.split("<!-- not-supported: begin -->").nth(1).unwrap();
    let table = table.split("<!-- not-supported: end -->").next().unwrap();
    let shown: BTreeSet<String> = table
        .lines()
        .filter_map(|l| l.strip_prefix("| `"))
        .map(|l| l.split(" | ").take(2).collect::<Vec<_>>().join(" ").replace('`', ""))
        .collect();
    let methods = |list: &[http::Method]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let refused: BTreeSet<String> = ROUTES.iter().map(|(path, list)| format!("{path} {}", methods(list))).collect();
    assert_eq!(shown, refused);
}
