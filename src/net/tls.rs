//! The mesh's TLS: both ends show a certificate of the mesh's own CA, and both check it.
//!
//! Rule: configurations are made whole from files that were checked, or not at all; broken files never replace good
//! ones. No session is resumed, so that every connection checks the certificate of its day. Must not know: what runs on
//! a connection.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::WebPkiClientVerifier;

use crate::types::MemberId;

/// Largest certificate or key file that is read.
const PEM_MAX_BYTES: u64 = 1 << 20;
/// Certificates that are valid for longer than this from now on (a century) count as valid for so long.
const FAR_S: u64 = 100 * 366 * 86_400;

/// Application protocol of the connection for ledger, leases, records, probes and gossip.
pub const ALPN_CONTROL: &[u8] = b"miroir-control/1";
/// Application protocol of the connection for all else.
pub const ALPN_DATA: &[u8] = b"miroir-data/1";

/// Where a member's certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The mesh's CA certificate (or several, while one replaces another).
    pub ca: PathBuf,
    /// The member's certificate, followed by intermediate ones if there are any.
    pub cert: PathBuf,
    /// The member's key.
    pub key: PathBuf,
}

/// What is wrong with which file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("can't read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file holds not what it should.
    #[error("{} is of no use: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The name under which a member's certificate is checked.
///
/// # Panics
/// Never: every member id is a DNS name.
pub fn server_name(id: &MemberId) -> ServerName<'static> {
    ServerName::try_from(id.as_str().to_owned()).expect("a member id is a DNS name by its own rule")
}

/// Whether a checked peer's certificate names this member.
pub fn names_member(cert: &CertificateDer<'_>, id: &MemberId) -> bool {
    webpki::EndEntityCert::try_from(cert).is_ok_and(|c| c.verify_is_valid_for_subject_name(&server_name(id)).is_ok())
}

/// Configurations made from one reading of the files.
#[derive(Clone)]
pub struct TlsConfigs {
    /// For connections that peers open.
    pub server: Arc<QuicServerConfig>,
    /// For control connections to peers.
    pub control: Arc<QuicClientConfig>,
    /// For data connections to peers.
    pub data: Arc<QuicClientConfig>,
    /// The last second since 1970 at which peers take the certificate and what stands between it and the CA.
    pub valid_until: u64,
}

/// The member's certificates, as they were read last.
pub struct TlsStore {
    files: TlsFiles,
    id: MemberId,
    // Without a stamp the files are read again, whether they change or not.
    current: RwLock<(Arc<TlsConfigs>, Option<Stamp>)>,
}

/// Tells whether files have changed: time of change and size of each.
type Stamp = [Option<(SystemTime, u64)>; 3];

impl TlsStore {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`TlsError`] naming the file and what is wrong with it.
    pub fn load(files: TlsFiles, id: MemberId) -> Result<Self, TlsError> {
        let stamp = stamp(&files);
        let configs = read(&files, &id)?;
        Ok(Self { files, id, current: RwLock::new((Arc::new(configs), Some(stamp))) })
    }

    /// The configurations for new connections.
    pub fn current(&self) -> Arc<TlsConfigs> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Reads the files again; new connections use them from now on.
    ///
    /// # Errors
    /// [`TlsError`]; the certificates of before stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        // Taken before reading, so that a change in between is seen the next time.
        let stamp = stamp(&self.files);
        let configs = read(&self.files, &self.id);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // What could not be read or is not valid yet may become good without a change that shows.
        current.1 = configs.is_ok().then_some(stamp);
        current.0 = Arc::new(configs?);
        Ok(())
    }

    /// Whether the files are to be read again: they have changed since they were last read, or could not be used then.
    pub fn changed(&self) -> bool {
        Some(stamp(&self.files)) != self.current.read().unwrap_or_else(PoisonError::into_inner).1
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    [&files.ca, &files.cert, &files.key].map(|path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(failed)?.take(PEM_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > PEM_MAX_BYTES {
        return Err(of_no_use(path, "it is larger than 1 MiB"));
    }
    Ok(bytes)
}

fn of_no_use(path: &Path, reason: impl Into<String>) -> TlsError {
    TlsError::File { path: path.to_owned(), reason: reason.into() }
}

fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs = CertificateDer::pem_slice_iter(&read_file(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| of_no_use(path, format!("it is no PEM: {e}")))?;
    if certs.is_empty() {
        return Err(of_no_use(path, "there is no certificate in it"));
    }
    Ok(certs)
}

fn read(files: &TlsFiles, id: &MemberId) -> Result<TlsConfigs, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let ca = read_certs(&files.ca)?;
    let chain = read_certs(&files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read_file(&files.key)?)
        .map_err(|e| of_no_use(&files.key, format!("there is no private key in it: {e}")))?;

    let mut roots = RootCertStore::empty();
    for cert in ca {
        roots.add(cert).map_err(|e| of_no_use(&files.ca, e.to_string()))?;
    }
    let valid_until = check_chain(files, id, &chain, &roots.roots, &provider)?;
    let roots = Arc::new(roots);
    let broken_pair = |e: rustls::Error| match e {
        rustls::Error::InconsistentKeys(_) => {
            of_no_use(&files.key, format!("it is not the key of the certificate in {}", files.cert.display()))
        }
        e => of_no_use(&files.cert, e.to_string()),
    };

    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|e| of_no_use(&files.ca, e.to_string()))?;
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| of_no_use(&files.cert, e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(broken_pair)?;
    server.alpn_protocols = vec![ALPN_CONTROL.to_vec(), ALPN_DATA.to_vec()];
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    server.send_tls13_tickets = 0;

    let client = |alpn: &[u8]| -> Result<_, TlsError> {
        let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| of_no_use(&files.cert, e.to_string()))?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(broken_pair)?;
        client.alpn_protocols = vec![alpn.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        let quic = QuicClientConfig::try_from(client).map_err(|e| of_no_use(&files.cert, e.to_string()))?;
        Ok(Arc::new(quic))
    };
    Ok(TlsConfigs {
        valid_until,
        control: client(ALPN_CONTROL)?,
        data: client(ALPN_DATA)?,
        server: Arc::new(QuicServerConfig::try_from(server).map_err(|e| of_no_use(&files.cert, e.to_string()))?),
    })
}

/// What every peer would check, checked here first, where the message reaches who can mend it. Gives the last second at
/// which they would find the same.
fn check_chain(
    files: &TlsFiles,
    id: &MemberId,
    chain: &[CertificateDer<'_>],
    roots: &[TrustAnchor<'_>],
    provider: &rustls::crypto::CryptoProvider,
) -> Result<u64, TlsError> {
    let path = &files.cert;
    let Some((first, intermediates)) = chain.split_first() else {
        return Err(of_no_use(path, "there is no certificate in it"));
    };
    let cert = webpki::EndEntityCert::try_from(first).map_err(|e| of_no_use(path, e.to_string()))?;
    if cert.verify_is_valid_for_subject_name(&server_name(id)).is_err() {
        return Err(of_no_use(path, format!("it does not name the member `{id}`")));
    }
    let verify = |at: u64, usage| {
        let (algorithms, at) =
            (provider.signature_verification_algorithms.all, UnixTime::since_unix_epoch(Duration::from_secs(at)));
        cert.verify_for_usage(algorithms, roots, intermediates, at, usage, None, None).map(drop)
    };
    let now = UnixTime::now().as_secs();
    for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
        verify(now, usage).map_err(|e| match e {
            webpki::Error::CertExpired { .. } => of_no_use(path, "it, or the CA's, has expired"),
            webpki::Error::CertNotValidYet { .. } => of_no_use(path, "it, or the CA's, is not valid yet"),
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                of_no_use(path, format!("it was not issued by the CA in {}", files.ca.display()))
            }
            webpki::Error::RequiredEkuNotFoundContext(_) => {
                of_no_use(path, "it may not be used for both ends of a connection (clientAuth and serverAuth)")
            }
            e => of_no_use(path, e.to_string()),
        })?;
    }
    // What is valid now ends once: found by halving, so that every certificate of the chain counts as it does for peers.
    let (mut valid, mut over) = (now, now.saturating_add(FAR_S));
    while over - valid > 1 {
        let middle = valid + (over - valid) / 2;
        match verify(middle, webpki::KeyUsage::server_auth()) {
            Ok(()) => valid = middle,
            Err(_) => over = middle,
        }
    }
    Ok(valid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{self, Validity};

    struct Fixture {
        dir: tempfile::TempDir,
        ca: pki::CaPair,
    }

    impl Fixture {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), ca: pki::create_ca("test", 10).unwrap() }
        }

        fn files(&self) -> TlsFiles {
            let path = |n| self.dir.path().join(n);
            TlsFiles { ca: path("ca.pem"), cert: path("cert.pem"), key: path("key.pem") }
        }

        fn write(&self, ca: &pki::CaPair, pair: &pki::MemberPair) {
            let files = self.files();
            fs::write(files.ca, &ca.cert_pem).unwrap();
            fs::write(files.cert, &pair.cert_pem).unwrap();
            fs::write(files.key, &pair.key_pem).unwrap();
        }

        fn issue(&self, id: &str) -> pki::MemberPair {
            pki::issue(&self.ca.cert_pem, &self.ca.key_pem, &m(id), &[], 5).unwrap()
        }

        fn load(&self) -> Result<TlsStore, TlsError> {
            TlsStore::load(self.files(), m("m1"))
        }

        fn refused(&self, file: &str, reason: &str) {
            let e = self.load().err().unwrap().to_string();
            assert!(e.contains(file) && e.contains(reason), "{e}");
        }
    }

    #[test]
    fn the_end_of_the_certificate_is_known() {
        let f = Fixture::new();
        f.write(&f.ca, &f.issue("m1"));
        let (until, now) = (f.load().unwrap().current().valid_until, UnixTime::now().as_secs());
        let days = (until - now) as f64 / 86_400.0;
        assert!((4.9..5.1).contains(&days), "{days}");
    }

    fn m(id: &str) -> MemberId {
        MemberId::new(id).unwrap()
    }

    #[test]
    fn every_broken_file_is_named_with_what_is_wrong() {
        let f = Fixture::new();
        f.refused("ca.pem", "No such file");
        f.write(&f.ca, &f.issue("m2"));
        f.refused("cert.pem", "does not name the member `m1`");
        f.write(&pki::create_ca("other", 10).unwrap(), &f.issue("m1"));
        f.refused("cert.pem", "not issued by the CA in");
        f.write(&f.ca, &pki::MemberPair { key_pem: f.issue("m1").key_pem, ..f.issue("m1") });
        f.refused("key.pem", "not the key of the certificate");
        f.write(&f.ca, &pki::MemberPair { key_pem: "nothing".into(), ..f.issue("m1") });
        f.refused("key.pem", "no private key");
        f.write(&f.ca, &pki::MemberPair { cert_pem: "nothing".into(), ..f.issue("m1") });
        f.refused("cert.pem", "no certificate");
        let now = time::OffsetDateTime::now_utc();
        let past = Validity { from: now - time::Duration::days(2), until: now - time::Duration::days(1) };
        let expired = pki::issue_within(&f.ca.cert_pem, &f.ca.key_pem, &m("m1"), &[], past).unwrap();
        f.write(&f.ca, &expired);
        f.refused("cert.pem", "has expired");
        f.write(&f.ca, &f.issue("m1"));
        f.load().unwrap();
    }

    #[test]
    fn broken_files_do_not_replace_good_ones() {
        let f = Fixture::new();
        f.write(&f.ca, &f.issue("m1"));
        let store = f.load().unwrap();
        assert!(!store.changed());
        let before = store.current();
        fs::write(f.files().cert, "half a certif").unwrap();
        assert!(store.changed());
        assert!(store.reload().is_err());
        assert!(Arc::ptr_eq(&before, &store.current()), "the old ones stay");
        assert!(store.changed(), "what is broken is tried again");
        f.write(&f.ca, &f.issue("m1"));
        assert!(store.changed());
        store.reload().unwrap();
        assert!(!Arc::ptr_eq(&before, &store.current()));
        assert!(!store.changed());
    }

    #[test]
    fn a_certificate_that_becomes_valid_is_taken_without_a_change() {
        let f = Fixture::new();
        f.write(&f.ca, &f.issue("m1"));
        let store = f.load().unwrap();
        let before = store.current();
        let now = time::OffsetDateTime::now_utc();
        let soon = Validity { from: now + time::Duration::seconds(2), until: now + time::Duration::days(1) };
        f.write(&f.ca, &pki::issue_within(&f.ca.cert_pem, &f.ca.key_pem, &m("m1"), &[], soon).unwrap());
        let error = store.reload().unwrap_err().to_string();
        assert!(error.contains("not valid yet"), "{error}");
        let begun = std::time::Instant::now();
        while !(store.changed() && store.reload().is_ok()) {
            assert!(begun.elapsed().as_secs() < 30, "it was never taken");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(!Arc::ptr_eq(&before, &store.current()) && !store.changed());
    }

    #[test]
    fn certificate_names_its_member_only() {
        let f = Fixture::new();
        let der = CertificateDer::from_pem_slice(f.issue("m1").cert_pem.as_bytes()).unwrap();
        assert!(names_member(&der, &m("m1")));
        assert!(!names_member(&der, &m("m2")));
        assert!(!names_member(&CertificateDer::from(vec![1, 2, 3]), &m("m1")));
    }

    proptest::proptest! {
        #[test]
        fn every_member_id_is_a_name_for_a_certificate(text in "[a-z0-9-]{1,63}|[0-9-]{1,8}") {
            if let Ok(id) = MemberId::new(text) {
                server_name(&id);
            }
        }
    }
}
