//! The signing key. It lies apart from the log, in a folder of its own, so that whoever may read or copy the log cannot sign.

use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

use crate::storage::{create_private_dir, write_whole};
use crate::{AuditError, hex, unhex};

/// An Ed25519 key in memory.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// The key in this file (PKCS #8), which is made where it is missing: readable by its owner alone, in a folder that is too.
    /// Beside it lies the public key in hex, `<name>.pub`, to be kept where auditors find it and the log's writer cannot
    /// change it.
    ///
    /// # Errors
    /// [`AuditError::Key`] for a file that holds no key or that others may read; the system's.
    pub fn open_or_create(path: &Path) -> Result<Self, AuditError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Self::create(path),
            Err(e) => return Err(AuditError::io("read", path, e)),
        };
        #[cfg(unix)]
        {
            let metadata = std::fs::metadata(path).map_err(|e| AuditError::io("read", path, e))?;
            if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0 {
                return Err(AuditError::Key(
                    "others may read its file; make it readable by its owner alone (chmod 600)",
                ));
            }
        }
        Self::from_pkcs8(&bytes)
    }

    fn create(path: &Path) -> Result<Self, AuditError> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| AuditError::Key("the system gives no randomness"))?;
        let key = Self::from_pkcs8(made.as_ref())?;
        let folder = path.parent().unwrap_or(Path::new("."));
        create_private_dir(folder).map_err(|e| AuditError::io("make", folder, e))?;
        write_whole(path, made.as_ref(), Some(0o600)).map_err(|e| AuditError::io("write", path, e))?;
        let public = path.with_extension("pub");
        let text = format!("{}\n", hex(&key.public_key()));
        write_whole(&public, text.as_bytes(), None).map_err(|e| AuditError::io("write", &public, e))?;
        Ok(key)
    }

    /// From PKCS #8.
    ///
    /// # Errors
    /// [`AuditError::Key`] where it is no Ed25519 key.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, AuditError> {
        let key = Ed25519KeyPair::from_pkcs8(bytes);
        key.map(Self).map_err(|_| AuditError::Key("the file holds no Ed25519 key"))
    }

    /// What checks its signatures.
    pub fn public_key(&self) -> [u8; 32] {
        let mut out = [0; 32];
        // An Ed25519 public key has 32 bytes.
        out.copy_from_slice(self.0.public_key().as_ref());
        out
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> String {
        hex(self.0.sign(bytes).as_ref())
    }
}

/// Reads a public key as `<name>.pub` holds it: 64 hexadecimal digits.
///
/// # Errors
/// [`AuditError::Key`] for anything else, and the system's.
pub fn read_public_key(path: &Path) -> Result<[u8; 32], AuditError> {
    let text = std::fs::read_to_string(path).map_err(|e| AuditError::io("read", path, e))?;
    unhex(text.trim()).ok_or(AuditError::Key("the file of the public key must hold 64 hexadecimal digits"))
}
