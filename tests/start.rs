//! Starts that can't come to anything, of the program itself.

use std::process::Command;

use miroir::pki;
use miroir::types::MemberId;

#[test]
fn a_start_with_the_wrong_certificate_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let ca = pki::create_ca("test", 10).unwrap();
    let other = pki::issue(&ca.cert_pem, &ca.key_pem, &MemberId::new("m2").unwrap(), &[], 5).unwrap();
    for (name, text) in [("ca.pem", &ca.cert_pem), ("cert.pem", &other.cert_pem), ("key.pem", &other.key_pem)] {
        std::fs::write(path(name), text).unwrap();
    }
    let text = "[node]\nid = \"m1\"\ndata_dir = \"data\"\n\
                [mesh]\nca_file = \"ca.pem\"\ncert_file = \"cert.pem\"\nkey_file = \"key.pem\"\n\
                bootstrap = [{ id = \"m1\", group = \"g1\", address = \"10.0.0.1:7781\" }]\n";
    std::fs::write(path("miroir.toml"), text).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_miroir"));
    let ended = program.args(["--config", "miroir.toml"]).current_dir(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("does not name the member `m1`"), "{said}");
    assert!(!path("data").exists(), "no store was made, and no start counted");
}
