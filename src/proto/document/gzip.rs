//! Bounded decompression of gzip bodies, also of several members in a row.
//!
//! The rule: never more memory than the limit, whatever the body claims. Must not know: HTTP headers.

use std::io::Read;

use flate2::read::MultiGzDecoder;

use super::DocumentError;

/// The decompressed bytes of a gzip body, at most `limit` of them. Before so many bytes more are held, `hold` is asked.
///
/// # Errors
/// `payload_too_large` beyond the limit, `bad_request` if the body is not whole gzip, both [`DocumentError::Sync`]; what
/// `hold` refuses with.
pub fn gunzip<E: From<DocumentError>>(
    body: &[u8],
    limit: usize,
    mut hold: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<u8>, E> {
    let mut decoder = MultiGzDecoder::new(body);
    let mut out = Vec::new();
    let mut chunk = vec![0; 32 << 10];
    loop {
        let read = decoder.read(&mut chunk).map_err(|_| DocumentError::incomplete())?;
        if read == 0 {
            return Ok(out);
        }
        let total = out.len() + read;
        if total > limit {
            return Err(DocumentError::too_large(limit).into());
        }
        if total > out.capacity() {
            let capacity = total.max(out.capacity().saturating_mul(2)).min(limit);
            hold(capacity - out.capacity())?;
            out.reserve_exact(capacity - out.len());
        }
        out.extend_from_slice(&chunk[..read]);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::types::ErrorCode;

    fn inflate(body: &[u8], limit: usize) -> Result<Vec<u8>, DocumentError> {
        gunzip(body, limit, |_| Ok(()))
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn several_members_are_one_text() {
        let body = [gzip(b"[{\"id\":1},"), gzip(b"{\"id\":2}]")].concat();
        assert_eq!(inflate(&body, 100).unwrap(), b"[{\"id\":1},{\"id\":2}]");
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let bomb = gzip(&vec![b' '; 10 << 20]);
        assert_eq!(inflate(&bomb, 1 << 20).unwrap_err().code(), ErrorCode::PayloadTooLarge);
        let exact = inflate(&bomb, 10 << 20).unwrap();
        assert_eq!(exact.len(), 10 << 20);
        assert!(exact.capacity() <= 10 << 20);
    }

    #[test]
    fn what_is_not_whole_gzip_is_refused() {
        let good = gzip(b"[{\"id\":1}]");
        let junk = [&good[..], b"junk"].concat();
        for bad in [&b""[..], b"nonsense", &good[..good.len() - 4], &good[..12], &junk] {
            assert_eq!(inflate(bad, 100).unwrap_err().code(), ErrorCode::BadRequest, "{bad:?}");
        }
    }
}
