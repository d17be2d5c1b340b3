//! Making a certificate authority and member certificates, in memory.
//!
//! Rule: whatever is issued verifies against the CA that it was asked for, for the member id and for nobody else's.
//! Must not know: files.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use time::{Duration, OffsetDateTime};

use crate::types::MemberId;

/// Days that a member certificate is valid unless told otherwise.
pub const MEMBER_VALIDITY_DAYS: u32 = 825;
/// Days that a CA is valid unless told otherwise.
pub const CA_VALIDITY_DAYS: u32 = 3_650;

/// The most that may be asked for; X.509 dates end with the year 9999.
const VALIDITY_MAX_DAYS: u32 = 36_500;

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The CA certificate can't be read or used.
    #[error("the CA certificate can't be used: {reason}")]
    CaCertificate {
        /// What is wrong.
        reason: String,
    },
    /// The CA key can't be read.
    #[error("the CA key can't be used: {reason}")]
    CaKey {
        /// What is wrong.
        reason: String,
    },
    /// A further name is not one that may stand in a member's certificate.
    #[error("the further name `{name}` can't stand in the certificate: {reason}")]
    San {
        /// The name.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The validity is out of range.
    #[error("a validity of {days} days is out of range: 1 to {VALIDITY_MAX_DAYS}")]
    Days {
        /// What was asked for.
        days: u32,
    },
    /// The generator failed.
    #[error("the certificate can't be made: {reason}")]
    Make {
        /// Its reason.
        reason: String,
    },
}

fn make_error(e: rcgen::Error) -> PkiError {
    PkiError::Make { reason: e.to_string() }
}

/// A CA's certificate and its key, both as PEM.
#[derive(Clone)]
pub struct CaPair {
    /// Given to every member.
    pub cert_pem: String,
    /// Kept by whoever issues certificates, and by no member.
    pub key_pem: String,
}

/// A member's certificate and its key, both as PEM.
#[derive(Clone)]
pub struct MemberPair {
    /// Shown to peers.
    pub cert_pem: String,
    /// The member's secret.
    pub key_pem: String,
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Not before this instant.
    pub from: OffsetDateTime,
    /// Not after this instant.
    pub until: OffsetDateTime,
}

impl Validity {
    /// The next `days` days, and the hour before now: clocks of hosts differ.
    ///
    /// # Errors
    /// [`PkiError::Days`] outside 1 to 36,500.
    pub fn days(days: u32) -> Result<Self, PkiError> {
        if !(1..=VALIDITY_MAX_DAYS).contains(&days) {
            return Err(PkiError::Days { days });
        }
        let now = OffsetDateTime::now_utc();
        Ok(Self { from: now - Duration::hours(1), until: now + Duration::days(i64::from(days)) })
    }
}

/// Makes a CA that may sign member certificates and nothing below them.
///
/// # Errors
/// [`PkiError`] if the generator fails.
pub fn create_ca(common_name: &str, validity_days: u32) -> Result<CaPair, PkiError> {
    let validity = Validity::days(validity_days)?;
    let key = KeyPair::generate().map_err(make_error)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) = (validity.from, validity.until);
    let cert = params.self_signed(&key).map_err(make_error)?;
    Ok(CaPair { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// Issues a certificate for a member, valid for the next `validity_days` days.
///
/// # Errors
/// [`PkiError`] naming what can't be used.
pub fn issue(
    ca_cert_pem: &str,
    ca_key_pem: &str,
    id: &MemberId,
    extra_sans: &[String],
    validity_days: u32,
) -> Result<MemberPair, PkiError> {
    issue_within(ca_cert_pem, ca_key_pem, id, extra_sans, Validity::days(validity_days)?)
}

/// Issues a certificate for a member with given dates, which may lie in the past.
///
/// # Errors
/// [`PkiError`] naming what can't be used.
pub fn issue_within(
    ca_cert_pem: &str,
    ca_key_pem: &str,
    id: &MemberId,
    extra_sans: &[String],
    validity: Validity,
) -> Result<MemberPair, PkiError> {
    let ca_key = KeyPair::from_pem(ca_key_pem).map_err(|e| PkiError::CaKey { reason: e.to_string() })?;
    let ca_der = CertificateDer::from_pem_slice(ca_cert_pem.as_bytes()).map_err(|e| ca_certificate(&e.to_string()))?;
    let ca = Issuer::from_ca_cert_der(&ca_der, ca_key).map_err(|e| ca_certificate(&e.to_string()))?;

    let key = KeyPair::generate().map_err(make_error)?;
    let mut params = CertificateParams::new(vec![id.as_str().to_owned()]).map_err(make_error)?;
    params.distinguished_name.push(DnType::CommonName, id.as_str());
    for name in extra_sans {
        params.subject_alt_names.push(extra_san(name)?);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (validity.from, validity.until);
    let cert = params.signed_by(&key, &ca).map_err(make_error)?;
    check_signature(&ca_der, cert.der(), validity)?;
    Ok(MemberPair { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

fn ca_certificate(reason: &str) -> PkiError {
    PkiError::CaCertificate { reason: reason.to_owned() }
}

/// A further name: an address, or a DNS name with a dot. One without a dot would make the certificate another member's.
fn extra_san(name: &str) -> Result<SanType, PkiError> {
    let refuse = |reason| PkiError::San { name: name.chars().take(256).collect(), reason };
    if let Ok(ip) = name.parse() {
        return Ok(SanType::IpAddress(ip));
    }
    if !name.trim_end_matches('.').contains('.') {
        return Err(refuse("a name without a dot is a member id, and a certificate names one member"));
    }
    if name.contains('*') {
        return Err(refuse("a wildcard stands for many hosts"));
    }
    ServerName::try_from(name).map_err(|_| refuse("it is neither an IP address nor a DNS name"))?;
    name.try_into().map(SanType::DnsName).map_err(|_| refuse("it is neither an IP address nor a DNS name"))
}

/// A key that belongs to another CA signs without complaint; only checking the signature shows it.
fn check_signature(ca: &CertificateDer<'_>, cert: &CertificateDer<'_>, validity: Validity) -> Result<(), PkiError> {
    let anchor = webpki::anchor_from_trusted_cert(ca).map_err(|e| ca_certificate(&e.to_string()))?;
    let cert = webpki::EndEntityCert::try_from(cert).map_err(|e| PkiError::Make { reason: e.to_string() })?;
    let from = u64::try_from(validity.from.unix_timestamp()).unwrap_or(0);
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    cert.verify_for_usage(
        algorithms.all,
        &[anchor],
        &[],
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(from)),
        webpki::KeyUsage::server_auth(),
        None,
        None,
    )
    .map_err(|e| match e {
        webpki::Error::InvalidSignatureForPublicKey => {
            PkiError::CaKey { reason: "it does not belong to the CA certificate".to_owned() }
        }
        e => PkiError::Make { reason: e.to_string() },
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(s: &str) -> MemberId {
        MemberId::new(s).unwrap()
    }

    #[test]
    fn certificate_is_valid_for_its_member_and_no_other() {
        let ca = create_ca("a mesh", 10).unwrap();
        let pair = issue(&ca.cert_pem, &ca.key_pem, &id("m1"), &["a.example".into(), "10.0.0.1".into()], 5).unwrap();
        let der = CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap();
        let cert = webpki::EndEntityCert::try_from(&der).unwrap();
        for good in ["m1", "a.example", "10.0.0.1"] {
            cert.verify_is_valid_for_subject_name(&ServerName::try_from(good).unwrap()).unwrap();
        }
        for bad in ["m2", "m1.example", "10.0.0.2"] {
            assert!(cert.verify_is_valid_for_subject_name(&ServerName::try_from(bad).unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn key_of_another_ca_issues_nothing() {
        let (a, b) = (create_ca("a mesh", 10).unwrap(), create_ca("a mesh", 10).unwrap());
        let e = issue(&a.cert_pem, &b.key_pem, &id("m1"), &[], 5).err().unwrap();
        assert!(matches!(e, PkiError::CaKey { .. }), "{e}");
    }

    #[test]
    fn names_that_would_be_another_member_are_refused() {
        let ca = create_ca("a mesh", 10).unwrap();
        for bad in ["m2", "m2.", "*.example", "a b.c", ""] {
            let e = issue(&ca.cert_pem, &ca.key_pem, &id("m1"), &[bad.into()], 5).err().unwrap();
            assert!(matches!(e, PkiError::San { .. }), "{bad}: {e}");
        }
    }

    #[test]
    fn garbage_is_named() {
        let ca = create_ca("a mesh", 10).unwrap();
        assert!(matches!(issue("x", &ca.key_pem, &id("m1"), &[], 5).err().unwrap(), PkiError::CaCertificate { .. }));
        assert!(matches!(issue(&ca.cert_pem, "x", &id("m1"), &[], 5).err().unwrap(), PkiError::CaKey { .. }));
        assert!(matches!(issue(&ca.cert_pem, &ca.key_pem, &id("m1"), &[], 0).err().unwrap(), PkiError::Days { .. }));
    }
}
