//! The client of a webhook against a server, plain and over TLS.

use std::sync::Arc;

use bytes::Bytes;
use http::Uri;
use miroir::net::webhook::WebhookClient;
use miroir::pki;
use miroir::types::MemberId;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Takes one call whose body is `body`.
async fn hear(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let mut heard = Vec::new();
    while !heard.ends_with(b"body") {
        let read = stream.read_buf(&mut heard).await.unwrap();
        assert!(read > 0, "it hung up");
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    stream.flush().await.unwrap();
    String::from_utf8(heard).unwrap()
}

#[tokio::test]
async fn a_webhook_is_told_with_its_headers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
    let hearing = tokio::spawn(async move { hear(listener.accept().await.unwrap().0).await });
    let webhook = WebhookClient::new(&address, Some("Bearer x")).unwrap();
    assert_eq!(webhook.post(Bytes::from_static(b"body")).await, Ok(()));
    let heard = hearing.await.unwrap();
    assert!(heard.starts_with("POST /hook?a=b HTTP/1.1\r\n"), "{heard}");
    for header in ["authorization: Bearer x", "content-encoding: gzip", "content-type: application/x-ndjson"] {
        assert!(heard.contains(header), "{heard}");
    }
    let nobody = WebhookClient::new("http://127.0.0.1:1/", None).unwrap();
    assert!(nobody.post(Bytes::new()).await.is_err());
}

#[tokio::test]
async fn a_webhook_over_tls_is_told_only_if_its_certificate_is_trusted() {
    let ca = pki::create_ca("test", 10).unwrap();
    let names = ["127.0.0.1".to_owned()];
    let pair = pki::issue(&ca.cert_pem, &ca.key_pem, &MemberId::new("hook").unwrap(), &names, 5).unwrap();
    let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri: Uri = format!("https://{}/hook", listener.local_addr().unwrap()).parse().unwrap();
    let hearing = tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Whoever does not trust it hangs up.
            if let Ok(stream) = acceptor.accept(stream).await {
                return hear(stream).await;
            }
        }
    });
    let stranger = WebhookClient::trusting(uri.clone(), None, RootCertStore::empty()).unwrap();
    let refused = stranger.post(Bytes::from_static(b"body")).await.unwrap_err();
    assert!(refused.contains("certificate"), "{refused}");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.cert_pem.as_bytes()).unwrap()).unwrap();
    let webhook = WebhookClient::trusting(uri, Some("Bearer x"), roots).unwrap();
    assert_eq!(webhook.post(Bytes::from_static(b"body")).await, Ok(()));
    let heard = hearing.await.unwrap();
    assert!(heard.starts_with("POST /hook HTTP/1.1\r\n") && heard.contains("authorization: Bearer x"), "{heard}");
}
