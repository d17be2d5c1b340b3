//! `ca init` and `ca issue`: the certificate authority as commands over files.
//!
//! Files of a CA's directory: `ca.pem`, `ca-key.pem`, and for each member `<id>.pem` and `<id>-key.pem`. Must not know:
//! the rest of the command line.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::files::{FileError, KEY_MODE, PUBLIC_MODE, io_error, write_new};
use super::issue::{CA_VALIDITY_DAYS, MEMBER_VALIDITY_DAYS, PkiError, create_ca, issue};
use crate::types::MemberId;

/// Largest certificate or key file that is read.
const PEM_MAX_BYTES: u64 = 1 << 20;

/// Makes the mesh's certificate authority and the members' certificates.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum CaCommand {
    /// Makes a certificate authority: ca.pem, which every member gets, and ca-key.pem, which none does.
    Init(InitArgs),
    /// Issues a member's certificate and key: ID.pem and ID-key.pem.
    Issue(IssueArgs),
}

/// What `ca init` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct InitArgs {
    /// The directory to write to; made if it is not there.
    #[arg(long, default_value = "ca")]
    pub dir: PathBuf,
    /// The authority's name, for people.
    #[arg(long, default_value = "Miroir mesh CA")]
    pub name: String,
    /// For how many days the authority is valid.
    #[arg(long, default_value_t = CA_VALIDITY_DAYS)]
    pub days: u32,
}

/// What `ca issue` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct IssueArgs {
    /// The directory of the authority.
    #[arg(long, default_value = "ca")]
    pub dir: PathBuf,
    /// The member's id, as in the mesh's `bootstrap` list.
    #[arg(long, value_parser = |s: &str| MemberId::new(s))]
    pub id: MemberId,
    /// A further name or address to put into the certificate; may be given several times.
    #[arg(long = "san")]
    pub sans: Vec<String>,
    /// Where to write; the authority's directory if left out.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// For how many days the certificate is valid.
    #[arg(long, default_value_t = MEMBER_VALIDITY_DAYS)]
    pub days: u32,
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A file can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate can't be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// There is no authority in the directory.
    #[error("there is no certificate authority in {}: run `miroir-ctl ca init --dir {}` first", dir.display(), dir.display())]
    NoCa {
        /// The directory.
        dir: PathBuf,
    },
    /// Another authority's certificate lies where this one's is to go.
    #[error("{} is the certificate of another authority", path.display())]
    OtherCa {
        /// The file.
        path: PathBuf,
    },
}

/// Carries the command out; the text says what was written and what to do with it.
///
/// # Errors
/// [`CommandError`] naming the file or the value.
pub fn run(command: &CaCommand) -> Result<String, CommandError> {
    match command {
        CaCommand::Init(args) => init(args),
        CaCommand::Issue(args) => issue_member(args),
    }
}

fn init(args: &InitArgs) -> Result<String, CommandError> {
    let (cert_path, key_path) = (args.dir.join("ca.pem"), args.dir.join("ca-key.pem"));
    if let Some(path) = [&cert_path, &key_path].into_iter().find(|p| p.exists()) {
        return Err(FileError::Exists { path: path.clone() }.into());
    }
    let ca = create_ca(&args.name, args.days)?;
    make_dir(&args.dir)?;
    write_new(&key_path, ca.key_pem.as_bytes(), KEY_MODE)?;
    write_new(&cert_path, ca.cert_pem.as_bytes(), PUBLIC_MODE)?;
    Ok(format!(
        "wrote {} (give it to every member)\nwrote {} (keep it where no member runs: who has it can join the mesh)\n",
        cert_path.display(),
        key_path.display()
    ))
}

fn issue_member(args: &IssueArgs) -> Result<String, CommandError> {
    let out = args.out.as_ref().unwrap_or(&args.dir);
    let (cert_path, key_path) = (out.join(format!("{}.pem", args.id)), out.join(format!("{}-key.pem", args.id)));
    // "ca" would be written over the authority's own files, were they not in the way.
    if let Some(path) = [&cert_path, &key_path].into_iter().find(|p| p.exists()) {
        return Err(FileError::Exists { path: path.clone() }.into());
    }
    let ca_cert_path = args.dir.join("ca.pem");
    if !ca_cert_path.exists() {
        return Err(CommandError::NoCa { dir: args.dir.clone() });
    }
    let ca_cert = read_pem(&ca_cert_path)?;
    let pair = issue(&ca_cert, &read_pem(&args.dir.join("ca-key.pem"))?, &args.id, &args.sans, args.days)?;
    let mut text = String::new();
    if args.out.is_some() {
        make_dir(out)?;
        let copy = out.join("ca.pem");
        match write_new(&copy, ca_cert.as_bytes(), PUBLIC_MODE) {
            Ok(()) => writeln!(text, "wrote {}", copy.display()).expect("a string takes all text"),
            Err(FileError::Exists { .. }) if read_pem(&copy)? == ca_cert => {}
            Err(FileError::Exists { path }) => return Err(CommandError::OtherCa { path }),
            Err(e) => return Err(e.into()),
        }
    }
    write_new(&key_path, pair.key_pem.as_bytes(), KEY_MODE)?;
    write_new(&cert_path, pair.cert_pem.as_bytes(), PUBLIC_MODE)?;
    writeln!(text, "wrote {}\nwrote {} (the member's secret)", cert_path.display(), key_path.display())
        .expect("a string takes all text");
    Ok(text)
}

fn make_dir(dir: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("make the directory", dir))
}

fn read_pem(path: &Path) -> Result<String, FileError> {
    use std::io::Read as _;

    let mut text = String::new();
    let file = fs::File::open(path).map_err(io_error("read", path))?;
    file.take(PEM_MAX_BYTES).read_to_string(&mut text).map_err(io_error("read", path))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue_args(dir: &Path, id: &str, out: Option<PathBuf>) -> CaCommand {
        CaCommand::Issue(IssueArgs {
            dir: dir.to_owned(),
            id: MemberId::new(id).unwrap(),
            sans: vec![],
            out,
            days: MEMBER_VALIDITY_DAYS,
        })
    }

    fn init_args(dir: &Path) -> CaCommand {
        CaCommand::Init(InitArgs { dir: dir.to_owned(), name: "test".into(), days: CA_VALIDITY_DAYS })
    }

    #[test]
    fn authority_and_members_are_written_once() {
        let tmp = tempfile::tempdir().unwrap();
        let (dir, out) = (tmp.path().join("ca"), tmp.path().join("m1"));
        let e = run(&issue_args(&dir, "m1", None)).unwrap_err();
        assert!(e.to_string().contains("ca init"), "{e}");
        run(&init_args(&dir)).unwrap();
        assert!(run(&init_args(&dir)).unwrap_err().to_string().contains("exists already"));
        run(&issue_args(&dir, "m1", Some(out.clone()))).unwrap();
        run(&issue_args(&dir, "m2", Some(out.clone()))).unwrap();
        assert!(run(&issue_args(&dir, "m1", Some(out.clone()))).unwrap_err().to_string().contains("exists already"));
        for file in ["ca.pem", "m1.pem", "m1-key.pem", "m2.pem", "m2-key.pem"] {
            assert!(out.join(file).exists(), "{file}");
        }
        assert!(!out.join("ca-key.pem").exists(), "the authority's key stays where it is");
    }

    #[test]
    fn member_called_ca_does_not_replace_the_authority() {
        let tmp = tempfile::tempdir().unwrap();
        run(&init_args(tmp.path())).unwrap();
        let before = fs::read(tmp.path().join("ca.pem")).unwrap();
        assert!(run(&issue_args(tmp.path(), "ca", None)).is_err());
        assert_eq!(fs::read(tmp.path().join("ca.pem")).unwrap(), before);
    }

    #[test]
    fn another_authority_in_the_output_directory_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
        run(&init_args(&a)).unwrap();
        run(&init_args(&b)).unwrap();
        let e = run(&issue_args(&a, "m1", Some(b.clone()))).unwrap_err();
        assert!(matches!(e, CommandError::OtherCa { .. }), "{e}");
        assert!(!b.join("m1-key.pem").exists());
    }
}
