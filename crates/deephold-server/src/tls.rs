//! TLS 1.3 and nothing older, by rustls over aws-lc: certificates of the site, or of a local authority that the first start makes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use deephold_audit::{create_private_dir, write_private};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::ServerError;

/// A server certificate's life, after which the next start makes a new one. Some clients refuse longer ones.
const CERTIFICATE_DAYS: i64 = 397;
/// A certificate is made anew when less is left.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// The authority's life.
const AUTHORITY_DAYS: i64 = 3650;

/// Where certificate and key lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: the server's certificate, then those between it and an authority.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
    /// PEM: authorities of clients. Where it is given, clients must show a certificate.
    pub client_authority: Option<PathBuf>,
}

/// A configuration that can be loaded anew while connections go on with the old one.
pub(crate) struct Tls {
    files: TlsFiles,
    current: RwLock<(Arc<ServerConfig>, Vec<Option<SystemTime>>)>,
}

impl Tls {
    pub(crate) fn load(files: TlsFiles) -> Result<Self, ServerError> {
        let loaded = (load(&files)?, times(&files));
        Ok(Self { files, current: RwLock::new(loaded) })
    }

    /// What a new connection shall use.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Loads the files anew if they have changed, or in any case where `always`; whether it did. On an error the old ones
    /// stay in use.
    ///
    /// # Errors
    /// As at the start.
    pub(crate) fn reload(&self, always: bool) -> Result<bool, ServerError> {
        let times = times(&self.files);
        if !always && self.current.read().unwrap_or_else(PoisonError::into_inner).1 == times {
            return Ok(false);
        }
        let loaded = load(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (loaded, times);
        Ok(true)
    }
}

fn times(files: &TlsFiles) -> Vec<Option<SystemTime>> {
    let all = [Some(&files.certificate), Some(&files.key), files.client_authority.as_ref()];
    let modified = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    all.into_iter().map(|path| path.and_then(modified)).collect()
}

fn bad(file: &Path, problem: impl std::fmt::Display) -> ServerError {
    let name = file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    ServerError::Tls(format!("{name}: {problem}"))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|e| bad(file, e))?;
    if found.is_empty() { Err(bad(file, "it holds no certificate in PEM")) } else { Ok(found) }
}

fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, ServerError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| bad(&files.key, e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder =
        builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(|e| bad(&files.certificate, e))?;
    let builder = match &files.client_authority {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(file)? {
                roots.add(authority).map_err(|e| bad(file, e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| bad(file, e))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| bad(&files.certificate, e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The certificate of a local authority in `dir`, both made where they are missing; the certificate also where it ends soon or
/// lacks one of `names`. Clients trust `dir/ca.pem`.
///
/// # Errors
/// The system's; files that are no certificates.
pub fn local_certificate(dir: &Path, names: &[String], now: Duration) -> Result<TlsFiles, ServerError> {
    let io = |source| ServerError::Io { action: "keep the local authority", source };
    create_private_dir(dir).map_err(io)?;
    let file = |name: &str| dir.join(name);
    let rcgen = |e: rcgen::Error| ServerError::Tls(e.to_string());
    let now = time(now);
    let (authority_file, authority_key) = (file("ca.pem"), file("ca.key"));
    if !authority_file.exists() {
        let key = rcgen::KeyPair::generate().map_err(rcgen)?;
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "Deephold local authority");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (now - days(1), now + days(AUTHORITY_DAYS));
        let certificate = params.self_signed(&key).map_err(rcgen)?;
        write_private(&authority_key, key.serialize_pem().as_bytes()).map_err(io)?;
        write_private(&authority_file, certificate.pem().as_bytes()).map_err(io)?;
    }
    let files = TlsFiles { certificate: file("server.pem"), key: file("server.key"), client_authority: None };
    // What the certificate was made for, and until when.
    let note = file("server.names");
    let wanted = names.join("\n");
    let kept = std::fs::read_to_string(&note).unwrap_or_default();
    let (until, for_names) = kept.split_once('\n').unwrap_or_default();
    let until = until.parse().unwrap_or(0);
    let ends_soon = until < now.unix_timestamp() + RENEW_BEFORE.as_secs() as i64;
    if ends_soon || for_names != wanted || !files.certificate.exists() || !files.key.exists() {
        let pem = |path: &Path| std::fs::read_to_string(path).map_err(io);
        let key = rcgen::KeyPair::from_pem(&pem(&authority_key)?).map_err(|e| bad(&authority_key, e))?;
        let issuer = rcgen::Issuer::from_ca_cert_pem(&pem(&authority_file)?, key)
            .map_err(|e| bad(&authority_file, e))?;
        let mut params = rcgen::CertificateParams::new(names.to_vec()).map_err(rcgen)?;
        params.distinguished_name.push(rcgen::DnType::CommonName, "Deephold");
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let until = now + days(CERTIFICATE_DAYS);
        (params.not_before, params.not_after) = (now - days(1), until);
        let own = rcgen::KeyPair::generate().map_err(rcgen)?;
        let certificate = params.signed_by(&own, &issuer).map_err(rcgen)?;
        write_private(&files.key, own.serialize_pem().as_bytes()).map_err(io)?;
        write_private(&files.certificate, certificate.pem().as_bytes()).map_err(io)?;
        write_private(&note, format!("{}\n{wanted}", until.unix_timestamp()).as_bytes()).map_err(io)?;
    }
    Ok(files)
}

fn days(n: i64) -> time::Duration {
    time::Duration::days(n)
}

fn time(unix: Duration) -> time::OffsetDateTime {
    let seconds = i64::try_from(unix.as_secs()).unwrap_or(i64::MAX);
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}
