//! `revfs.json`, the one file that says what a store is, and the names of all other objects.
//!
//! Invariant: the file carries a checksum of its own fields, so a changed digit is refused and not believed.

use object_store::path::Path as ObjectPath;
use revfs_protocol::BlockSize;
use serde::{Deserialize, Serialize};

use crate::store::Codec;

/// Version of the store format that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// The word that marks a store.
const FORMAT_NAME: &str = "revfs";
/// Name of the file.
pub const FORMAT_OBJECT: &str = "revfs.json";
/// Largest `revfs.json` that is looked at, bytes.
pub const FORMAT_BYTES_MAX: u64 = 64 << 10;

/// What a store is; made once by `init`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// Identity of the store.
    pub uuid: uuid::Uuid,
    /// Block size of new files.
    pub block_size: BlockSize,
    /// Encoding of new blocks.
    pub codec: Codec,
    /// When it was made, ns since 1970 UTC.
    pub created_unix_ns: u64,
}

#[derive(Serialize, Deserialize)]
struct Json {
    format: String,
    version: u32,
    #[serde(default)]
    uuid: String,
    #[serde(default)]
    block_size: u64,
    #[serde(default)]
    compress: String,
    #[serde(default)]
    created_unix_ns: u64,
    #[serde(default)]
    crc32c: String,
}

/// Why something is not a store that can be opened.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It is of another version.
    #[error(
        "the store has format version {found}, this revfs reads version {FORMAT_VERSION}: use a revfs that \
         matches, or make a new store and commit the files again"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// Its description is not one of revfs.
    #[error("revfs.json is not the description of a revfs store ({what}): name the directory of a store")]
    NotAStore {
        /// What was found.
        what: String,
    },
    /// Its description was changed.
    #[error("revfs.json is damaged ({what}): restore it from a backup")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
}

impl Json {
    fn checksum(&self) -> String {
        let fields = format!(
            "{}\n{}\n{}\n{}\n{}\n{}",
            self.format, self.version, self.uuid, self.block_size, self.compress, self.created_unix_ns
        );
        format!("{:08x}", super::crc32c(fields.as_bytes()))
    }
}

impl Format {
    /// The text of `revfs.json`.
    pub fn encode(&self) -> Vec<u8> {
        let mut json = Json {
            format: FORMAT_NAME.to_owned(),
            version: FORMAT_VERSION,
            uuid: self.uuid.to_string(),
            block_size: self.block_size.bytes(),
            compress: match self.codec {
                Codec::Raw => "none".to_owned(),
                Codec::Zstd => "zstd".to_owned(),
            },
            created_unix_ns: self.created_unix_ns,
            crc32c: String::new(),
        };
        json.crc32c = json.checksum();
        // Plain strings and numbers always serialise.
        let mut text = serde_json::to_vec_pretty(&json).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Reads the text of `revfs.json`.
    ///
    /// # Errors
    /// See [`FormatError`].
    pub fn decode(text: &[u8]) -> Result<Format, FormatError> {
        let json: Json = serde_json::from_slice(text)
            .map_err(|error| FormatError::NotAStore { what: format!("not its JSON: {error}") })?;
        if json.format != FORMAT_NAME {
            return Err(FormatError::NotAStore { what: format!("its format is '{}'", json.format) });
        }
        let intact = json.crc32c == json.checksum();
        if json.version != FORMAT_VERSION {
            // A flipped digit of the version fails the checksum too; a real other version may compute it
            // in another way, so the version is reported first.
            return Err(FormatError::Version { found: json.version });
        }
        if !intact {
            return Err(FormatError::Damaged { what: "its checksum does not match its fields" });
        }
        let uuid = json.uuid.parse().map_err(|_| FormatError::Damaged { what: "its uuid is not a UUID" })?;
        let block_size = BlockSize::new(json.block_size)
            .map_err(|_| FormatError::Damaged { what: "its block size is not one" })?;
        let codec = match json.compress.as_str() {
            "none" => Codec::Raw,
            "zstd" => Codec::Zstd,
            _ => return Err(FormatError::Damaged { what: "its compression is not known" }),
        };
        Ok(Format { uuid, block_size, codec, created_unix_ns: json.created_unix_ns })
    }
}

/// Name of the record with number `seq`.
pub fn record_object(seq: u64) -> ObjectPath {
    ObjectPath::from(format!("commits/{seq:020}"))
}

/// Number of the record with this last component of a name; `None` for staging files and strangers.
pub fn record_seq(name: &str) -> Option<u64> {
    if name.len() != 20 || !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    name.parse().ok()
}

/// Name of a pack.
pub fn pack_object(uuid: uuid::Uuid) -> ObjectPath {
    let name = uuid.simple().to_string();
    ObjectPath::from(format!("packs/{}/{name}", &name[..2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format() -> Format {
        Format {
            uuid: uuid::Uuid::from_u128(7),
            block_size: BlockSize::DEFAULT,
            codec: Codec::Raw,
            created_unix_ns: 12,
        }
    }

    #[test]
    fn a_description_reads_back() {
        assert_eq!(Format::decode(&format().encode()).unwrap(), format());
    }

    #[test]
    fn no_flipped_byte_is_believed() {
        let text = format().encode();
        for index in 0..text.len() {
            for bit in 0..8 {
                let mut flipped = text.clone();
                flipped[index] ^= 1 << bit;
                match Format::decode(&flipped) {
                    Ok(read) => assert_eq!(read, format(), "byte {index} bit {bit}"),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused_with_both_versions() {
        let text = String::from_utf8(format().encode()).unwrap().replace("\"version\": 1", "\"version\": 9");
        let error = Format::decode(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("version 9") && error.contains("version 1"), "{error}");
    }
}
