//! The configuration as an operator meets it: every fault text, the environment, and the example file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use miroir::config::{Config, ConfigErrors, KEYS, KeyDefault, LogFormat, UnavailableShardPolicy};
use tempfile::TempDir;

const EXAMPLE: &str = include_str!("../miroir.example.toml");

/// A directory with certificates (their contents don't matter here) and a config file.
struct Case {
    dir: TempDir,
}

impl Case {
    fn new(text: &str) -> Self {
        let case = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["ca.pem", "member.pem", "member-key.pem"] {
            case.write(name, "pem");
        }
        case.write("miroir.toml", text);
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn load(&self, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        self.load_at(Some(&self.path("miroir.toml")), env)
    }

    fn load_at(&self, path: Option<&Path>, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let certificates = [("CA_FILE", "ca.pem"), ("CERT_FILE", "member.pem"), ("KEY_FILE", "member-key.pem")]
            .map(|(key, file)| (format!("MIROIR_MESH__{key}"), self.path(file).display().to_string()));
        let env = env.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        Config::load(path, certificates.into_iter().chain(env))
    }

    /// The fault texts, with the directory's name taken out.
    fn faults(&self, env: &[(&str, &str)]) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        match self.load(env) {
            Ok(_) => Vec::new(),
            Err(e) => e.to_string().lines().map(|l| l.replace(&dir, "")).collect(),
        }
    }
}

const SOUND: &str = r#"[node]
id = "m1"
[mesh]
bootstrap = [{ id = "m1", group = "g1", address = "10.0.0.1:7781" }]
"#;

/// The faults of a sound file with more lines at its end.
fn faults_with(more: &str) -> Vec<String> {
    Case::new(&format!("{SOUND}{more}")).faults(&[])
}

#[test]
fn smallest_file_gives_the_defaults() {
    let config = Case::new(SOUND).load(&[]).unwrap();
    assert_eq!(config.node.data_dir, Path::new("/var/lib/miroir"));
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:7780");
    assert_eq!(config.mesh.listen.to_string(), "0.0.0.0:7781");
    assert_eq!(config.metrics.listen.to_string(), "127.0.0.1:9780");
    assert_eq!(config.meilisearch.url.to_string(), "http://127.0.0.1:7700");
    assert_eq!(config.mesh.entry(&config.node.id).unwrap().address.to_string(), "10.0.0.1:7781");
    assert_eq!((config.index.shards, config.mesh.rf, config.node.shutdown_drain_s), (64, 1, 10));
    assert_eq!(config.search.unavailable_shard_policy, UnavailableShardPolicy::Partial);
    assert_eq!(config.log.format, LogFormat::Text);
    assert!(config.access.master_key.is_none() && config.meilisearch.key.is_none());
    assert!(config.warnings().is_empty());
}

#[test]
fn unknown_keys_and_sections_are_named_with_what_is_expected() {
    assert_eq!(
        faults_with("[metrics]\nlisten = \"127.0.0.1:1\"\nlisen = 3\n[htpp]\n"),
        [
            "miroir.toml:7: [metrics] lisen: unknown key, expected one of listen",
            "miroir.toml:8: [htpp]: unknown section, expected one of [node], [meilisearch], [http], [mesh], [leader_election], [journal], \
             [tasks], [metrics], [access], [index], [search], [log]",
        ]
    );
    let top = Case::new(&format!("http = 3\nlisten = 4\n{SOUND}")).faults(&[]);
    assert_eq!(top[0], "miroir.toml:1: http: expected the section [http], found a number");
    assert!(top[1].starts_with("miroir.toml:2: listen: a key outside of a section, expected it in one of [node],"));
}

#[test]
fn mistyped_values_name_key_line_and_expected_type() {
    for (section, line, fault) in [
        (
            "http",
            "listen = 7780",
            "listen: expected an IP address with a port, such as 127.0.0.1:7780, found the number 7780",
        ),
        (
            "http",
            "listen = \"localhost:7780\"",
            "listen: expected an IP address with a port, such as 127.0.0.1:7780, found `localhost:7780`",
        ),
        (
            "http",
            "max_body_bytes = \"100 MiB\"",
            "max_body_bytes: expected a number of bytes from 1024 to 536870911, found `100 MiB`",
        ),
        (
            "http",
            "max_body_bytes = 3",
            "max_body_bytes: expected a number of bytes from 1024 to 536870911, found the number 3",
        ),
        (
            "http",
            "body_timeout_s = 0",
            "body_timeout_s: expected a number of seconds from 1 to 3600, found the number 0",
        ),
        (
            "http",
            "body_timeout_s = 1.5",
            "body_timeout_s: expected a number of seconds from 1 to 3600, found the number 1.5",
        ),
        ("index", "shards = 1025", "shards: expected a number from 1 to 1024, found the number 1025"),
        ("index", "shards = -1", "shards: expected a number from 1 to 1024, found the number -1"),
        (
            "index",
            "shards = 99999999999999999999",
            "shards: expected a number from 1 to 1024, found the number 99999999999999999999",
        ),
        ("search", "hedge = \"yes\"", "hedge: expected true or false, found `yes`"),
        (
            "search",
            "unavailable_shard_policy = \"none\"",
            "unavailable_shard_policy: expected `partial` or `error`, found `none`",
        ),
        (
            "log",
            "filter = \"info,,=\"",
            "filter: expected a filter such as `info` or `warn,miroir::net=debug`, found `info,,=`",
        ),
        ("log", "filter = \"\"", "filter: expected a filter such as `info` or `warn,miroir::net=debug`, found ``"),
        ("log", "format = [\"json\"]", "format: expected `text` or `json`, found a list"),
        (
            "meilisearch",
            "url = \"https://127.0.0.1\"",
            "url: expected a URL such as http://127.0.0.1:7700, without a path, found `https://127.0.0.1`",
        ),
        (
            "meilisearch",
            "key_file = 3",
            "key_file: expected the path of a file that holds the secret, found the number 3",
        ),
    ] {
        let faults = faults_with(&format!("[{section}]\n{line}\n"));
        let expected = format!("miroir.toml:6: [{section}] {fault}");
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with(&expected), "{}\n{expected}", faults[0]);
    }
}

#[test]
fn a_fault_inside_the_member_list_names_its_own_line() {
    let text = "[node]\nid = \"m1\"\n[mesh]\nbootstrap = [\n  { id = \"m1\", group = \"g1\", address = \"10.0.0.1:7781\" },\n  \
                { id = \"m2\", grup = \"g1\", address = \"10.0.0.2:7781\" },\n]\n";
    let faults = Case::new(text).faults(&[]);
    assert_eq!(
        faults,
        ["miroir.toml:6: [mesh] bootstrap: expected a list such as [{ id = \"m1\", group = \"g1\", address = \
          \"10.0.0.1:7781\" }], found a list (unknown field `grup`, expected one of `id`, `group`, `address`, `witness`)"]
    );
}

#[test]
fn missing_keys_name_the_file_and_the_variable() {
    let faults = Case::new("").faults(&[]);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("miroir.toml: [node] id is missing: expected a member id"), "{faults:?}");
    assert!(faults[0].ends_with("in a certificate) (or MIROIR_NODE__ID in the environment)"), "{}", faults[0]);
    let case = Case::new("");
    let errors = case.load_at(None, &[]).unwrap_err().to_string();
    assert!(errors.starts_with("configuration: [node] id is missing"), "{errors}");
}

#[test]
fn broken_toml_is_named_by_line() {
    let faults = Case::new("[node]\nid = m1\n").faults(&[]);
    assert!(faults[0].starts_with("miroir.toml:2: not TOML: "), "{faults:?}");
    let faults = Case::new("[node]\nid = \"m1\"\nid = \"m2\"\n").faults(&[]);
    assert!(faults[0].starts_with("miroir.toml:3: not TOML: duplicate key"), "{faults:?}");
    let deep = Case::new(&format!("[mesh]\nbootstrap = {}", "[".repeat(100_000))).faults(&[]);
    assert!(deep[0].starts_with("miroir.toml:2: not TOML: "), "{}", deep[0]);
}

#[test]
fn unreadable_files_are_named() {
    let case = Case::new(SOUND);
    let missing = case.path("nowhere.toml");
    let error = case.load_at(Some(&missing), &[]).unwrap_err().to_string();
    assert!(error.contains("nowhere.toml: can't read the config file: No such file"), "{error}");
    case.write("miroir.toml", &"#".repeat(2 << 20));
    assert!(case.faults(&[])[0].contains("larger than 1048576 bytes"));
    let faults = faults_with("[access]\nmaster_key_file = \"/nowhere/key\"\n");
    assert!(faults[0].starts_with("miroir.toml:6: [access] master_key_file: can't read /nowhere/key: No such file"));
    let case = Case::new(SOUND);
    std::fs::remove_file(case.path("member.pem")).unwrap();
    assert!(
        case.faults(&[])[0].starts_with("environment variable MIROIR_MESH__CERT_FILE: [mesh] cert_file: can't read "),
        "{:?}",
        case.faults(&[])
    );
}

#[test]
fn the_environment_goes_over_the_file() {
    let case = Case::new(&format!("{SOUND}[http]\nlisten = \"127.0.0.1:1000\"\n[search]\nhedge = true\n"));
    let config = case
        .load(&[
            ("MIROIR_HTTP__LISTEN", "127.0.0.1:2000"),
            ("MIROIR_NODE__ID", "7e1"),
            (
                "MIROIR_MESH__BOOTSTRAP",
                "[{id='7e1',group='a',address='10.0.0.7:1'},{id='m8',group='b',address='10.0.0.8:1'}]",
            ),
            ("MIROIR_SEARCH__HEDGE", "false"),
            ("MIROIR_SEARCH__UNAVAILABLE_SHARD_POLICY", "error"),
            ("MIROIR_INDEX__SHARDS", "8"),
        ])
        .unwrap();
    assert_eq!(config.http.listen.port(), 2000);
    assert_eq!(config.node.id.as_str(), "7e1", "a text that looks like a number stays a text");
    assert_eq!(config.mesh.bootstrap.len(), 2);
    assert!(!config.search.hedge);
    assert_eq!(config.search.unavailable_shard_policy, UnavailableShardPolicy::Error);
    assert_eq!(config.index.shards, 8);
}

#[test]
fn the_environment_alone_is_enough() {
    let case = Case::new("");
    let config = case.load_at(
        None,
        &[("MIROIR_NODE__ID", "m1"), ("MIROIR_MESH__BOOTSTRAP", r#"[{id="m1",group="g1",address="10.0.0.1:7781"}]"#)],
    );
    assert_eq!(config.unwrap().node.id.as_str(), "m1");
}

#[test]
fn variables_that_mean_nothing_are_faults() {
    let faults = Case::new(SOUND).faults(&[
        ("MIROIR_HTTP__LISTNE", "127.0.0.1:1"),
        ("MIROIR_HTTP_LISTEN", "127.0.0.1:1"),
        ("MIROIR_INDEX__SHARDS", "many"),
        ("MIROIR_NOTES", "no section, so none of ours"),
        ("PATH", "/bin"),
    ]);
    assert_eq!(
        faults,
        [
            "environment variable MIROIR_HTTP_LISTEN: unknown, expected MIROIR_HTTP__LISTEN (two underscores between \
             section and key)",
            "environment variable MIROIR_HTTP__LISTNE: unknown, expected MIROIR_<SECTION>__<KEY> with a section and a key of \
             the config file",
            "environment variable MIROIR_INDEX__SHARDS: [index] shards: expected a number from 1 to 1024, found `many` \
             (invalid type: string \"many\", expected u16)",
        ]
    );
}

#[test]
fn secrets_come_from_files_or_the_environment_only() {
    let case = Case::new(&format!("{SOUND}[access]\nmaster_key = \"sixteen-bytes-literal\"\n"));
    assert_eq!(
        case.faults(&[]),
        [
            "miroir.toml:6: [access] master_key: a secret can't stand in the config file: put it into a file of its own and \
          name that with master_key_file, or set MIROIR_ACCESS__MASTER_KEY"
        ]
    );

    case.write("master.key", "sixteen-bytes-of-master\n");
    let file = case.path("master.key").display().to_string();
    case.write("miroir.toml", &format!("{SOUND}[access]\nmaster_key_file = \"{file}\"\n"));
    let config = case.load(&[("MIROIR_MEILISEARCH__KEY", "node")]).unwrap();
    assert!(config.access.master_key.as_ref().unwrap().is("sixteen-bytes-of-master"));
    assert!(config.meilisearch.key.as_ref().unwrap().is("node"));
    assert!(!format!("{config:?}").contains("sixteen-bytes"), "a config can be logged");

    let over = case.load(&[("MIROIR_ACCESS__MASTER_KEY", "another-key-of-sixteen")]).unwrap();
    assert!(over.access.master_key.unwrap().is("another-key-of-sixteen"), "the environment goes over the file");
    let both = case
        .faults(&[("MIROIR_ACCESS__MASTER_KEY", "another-key-of-sixteen"), ("MIROIR_ACCESS__MASTER_KEY_FILE", &file)]);
    assert_eq!(
        both,
        ["environment variable MIROIR_ACCESS__MASTER_KEY: [access] master_key: set either this variable or \
          MIROIR_ACCESS__MASTER_KEY_FILE, not both"]
    );
}

#[test]
fn unusable_secrets_are_faults_that_do_not_show_them() {
    let case = Case::new(SOUND);
    case.write("admin.key", "two words and more");
    let faults = case.faults(&[
        ("MIROIR_ACCESS__MASTER_KEY", "short-secret"),
        ("MIROIR_ACCESS__ADMIN_KEY_FILE", &case.path("admin.key").display().to_string()),
        ("MIROIR_MEILISEARCH__KEY", ""),
    ]);
    assert_eq!(
        faults,
        [
            "environment variable MIROIR_ACCESS__ADMIN_KEY_FILE: [access] admin_key: the secret can't be used: it has \
             characters other than visible ASCII",
            "environment variable MIROIR_ACCESS__MASTER_KEY: [access] master_key: the secret can't be used: it is shorter \
             than 16 bytes",
            "environment variable MIROIR_MEILISEARCH__KEY: [meilisearch] key: the secret can't be used: it is empty",
        ]
    );
}

#[test]
fn relations_between_keys_are_checked() {
    let members = |list: &str, rf: u8| format!("[node]\nid = \"m1\"\n[mesh]\nbootstrap = [{list}]\nrf = {rf}\n");
    let m = |n: u8, group: &str| format!("{{id = \"m{n}\", group = \"{group}\", address = \"10.0.0.{n}:7781\"}},");
    let two = format!("{}{}", m(1, "g1"), m(2, "g2"));
    for (text, fault) in [
        (members(&format!("{}{}", m(2, "g1"), r#"{id = "m1", group = "g1", address = "10.0.0.1:7781", witness = true}"#), 1), "miroir.toml:4: [mesh] bootstrap: expected witness = false for this member, `m1` ([node] witness), found true".to_owned()),
        (members(&m(2, "g1").replace("}", ", witness = true}"), 1), "miroir.toml:4: [mesh] bootstrap: expected a member with a node, found witnesses only\nmiroir.toml:4: [mesh] bootstrap: expected an entry for this member, `m1` ([node] id)".into()),
        (members(&m(2, "g1"), 1), "miroir.toml:4: [mesh] bootstrap: expected an entry for this member, `m1` ([node] id)".into()),
        (members(&format!("{}{}", m(1, "g1"), m(1, "g1")), 1), "miroir.toml:4: [mesh] bootstrap: the address 10.0.0.1:7781 stands there twice\nmiroir.toml:4: [mesh] bootstrap: the member id `m1` stands there twice".into()),
        (members(&two, 2), "miroir.toml:4: [mesh] bootstrap: group `g1` has 1 members with a node, expected at least rf = 2\nmiroir.toml:4: [mesh] bootstrap: group `g2` has 1 members with a node, expected at least rf = 2".into()),
        (format!("{SOUND}[http]\nlisten = \"0.0.0.0:9780\"\n"), "miroir.toml: [metrics] listen: expected another port than [http] listen = 0.0.0.0:9780, found 127.0.0.1:9780".into()),
        (format!("{SOUND}[meilisearch]\nurl = \"http://localhost:7780\"\n"), "miroir.toml:6: [meilisearch] url: expected the node's own address, found that of [http] listen".into()),
        (format!("{SOUND}probe_interval_ms = 2000\n"), "miroir.toml:5: [mesh] probe_interval_ms: expected at most gossip_interval_ms = 1000 (a suspect must be known before gossip misses it), found 2000".into()),
        (format!("{SOUND}[leader_election]\nlease_ttl_s = 6\n"), "miroir.toml: [leader_election] renew_interval_s: expected less than half of lease_ttl_s = 6 (one lost renewal must not cost a lease), found 3".into()),
        (format!("{SOUND}[leader_election]\nlease_ttl_s = 2\n"), "miroir.toml:6: [leader_election] lease_ttl_s: expected a number of seconds from 3 to 600, found the number 2".into()),
        (format!("{SOUND}[search]\ndeadline_ms = 60001\n"), "miroir.toml:6: [search] deadline_ms: expected at most [meilisearch] timeout_s = 60 (no part may take longer), found 60001".into()),
    ] {
        assert_eq!(Case::new(&text).faults(&[]).join("\n"), fault);
    }
    let many: String = (1..=129).map(|n| format!("{{id=\"m{n}\",group=\"g\",address=\"10.0.1.{n}:7781\"}},")).collect();
    assert_eq!(
        Case::new(&members(&many, 1)).faults(&[]),
        ["miroir.toml:4: [mesh] bootstrap: expected at most 128 members, found 129"]
    );
}

#[test]
fn addresses_that_nobody_can_send_to_are_refused() {
    for address in ["0.0.0.0:7781", "10.0.0.1:0"] {
        let text = SOUND.replace("10.0.0.1:7781", address);
        assert!(Case::new(&text).faults(&[])[0].starts_with("miroir.toml:4: [mesh] bootstrap: expected a list"));
    }
}

#[test]
fn an_open_mesh_beyond_loopback_is_warned_of() {
    let case = Case::new(SOUND);
    let config = case.load(&[("MIROIR_HTTP__LISTEN", "0.0.0.0:7780")]).unwrap();
    assert!(config.warnings()[0].contains("no master key is set"));
}

#[test]
fn garbage_is_refused_without_a_panic() {
    for text in
        ["\u{0}", "[[node]]\nid=1", "node.id.x = 1", "[mesh]\nbootstrap = 1979-05-27", "= = =", "[node", "\"\" = 1"]
    {
        assert!(!Case::new(text).faults(&[]).is_empty(), "{text}");
    }
}

/// `(section, key) → text after the equals sign` of every key of the example, commented out or not.
fn example_keys() -> Vec<(String, String, String, bool)> {
    let mut section = String::new();
    let mut out = Vec::new();
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, value)) = line.trim_start_matches('#').split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            out.push((section.clone(), key.to_owned(), value.to_owned(), line.starts_with('#')));
        }
    }
    out
}

#[test]
fn the_example_shows_every_key_with_its_default_and_no_other() {
    let shown = example_keys();
    let of_code: BTreeSet<_> =
        KEYS.iter().filter(|k| !k.secret).map(|k| (k.section.to_owned(), k.key.to_owned())).collect();
    let of_example: BTreeSet<_> = shown.iter().map(|(s, k, ..)| (s.clone(), k.clone())).collect();
    assert_eq!(of_example, of_code);
    assert_eq!(shown.len(), of_example.len(), "no key stands there twice");

    for (section, key, value, commented) in &shown {
        let code = KEYS.iter().find(|k| k.section == section && k.key == key).unwrap();
        let parse = |text: &str| format!("v = {text}").parse::<toml::Table>().unwrap();
        match code.default {
            KeyDefault::Value(default) => {
                assert!(commented, "[{section}] {key} has a default, so it is commented out");
                assert_eq!(parse(value), parse(default), "[{section}] {key}");
            }
            KeyDefault::Unset => assert_eq!((value.as_str(), *commented), ("(not set)", true), "[{section}] {key}"),
            KeyDefault::Required => assert!(!commented, "[{section}] {key} is required"),
        }
    }
}

#[test]
fn the_example_loads_as_it_stands_and_uncommented() {
    let uncommented: String = EXAMPLE
        .lines()
        .filter(|l| !l.ends_with("= (not set)"))
        .map(|l| match l.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{rest}\n"),
            _ => format!("{l}\n"),
        })
        .collect();
    assert_ne!(uncommented, EXAMPLE);
    let (bare, full) = (Case::new(EXAMPLE), Case::new(&uncommented));
    let certificates = |config: Config| {
        let mut config = config;
        config.mesh.ca_file = PathBuf::new();
        config.mesh.cert_file = PathBuf::new();
        config.mesh.key_file = PathBuf::new();
        config
    };
    assert_eq!(certificates(bare.load(&[]).unwrap()), certificates(full.load(&[]).unwrap()));
}
