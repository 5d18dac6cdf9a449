//! What a side says of itself: HELLO, once, and STATUS, on change.

use super::{VERSION, VERSION_MIN, invalid, window};
use crate::cursor::{Reader, put_text, put_varint};
use crate::error::DecodeError;
use crate::limits::{ENDPOINT_MAX, ENDPOINTS_MAX, LINK_WINDOW_MIN, REQUEST_ID_MAX, TOKEN_MAX};

/// Which side of a link a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Sends requests.
    Router = 1,
    /// Runs engines.
    Worker = 2,
}

/// The first frame of each side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version the sender understands.
    pub version_min: u16,
    /// Newest version the sender understands.
    pub version_max: u16,
    /// Which side the sender is.
    pub role: Role,
    /// Optional features, one bit each. None is defined in version 1.
    pub features: u64,
    /// Largest message the sender accepts, in bytes.
    pub message_max: u32,
    /// Streams the sender accepts at once on this link.
    pub streams_max: u32,
    /// Credit for the link as a whole, in bytes.
    pub link_window: u32,
    /// Who the sender is: unique for each worker or router object.
    pub instance_id: String,
    /// The namespace both sides must share.
    pub namespace: String,
    /// Authentication token; empty when there is none.
    pub token: Vec<u8>,
    /// The worker's endpoints; empty for a router.
    pub endpoints: Vec<String>,
}

impl Hello {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version_min.to_le_bytes());
        out.extend_from_slice(&self.version_max.to_le_bytes());
        out.push(self.role as u8);
        out.extend_from_slice(&self.features.to_le_bytes());
        out.extend_from_slice(&self.message_max.to_le_bytes());
        out.extend_from_slice(&self.streams_max.to_le_bytes());
        out.extend_from_slice(&self.link_window.to_le_bytes());
        put_text(out, &self.instance_id, REQUEST_ID_MAX);
        put_text(out, &self.namespace, ENDPOINT_MAX);
        let token = self.token.get(..self.token.len().min(TOKEN_MAX)).unwrap_or_default();
        put_varint(out, token.len());
        out.extend_from_slice(token);
        put_texts(out, &self.endpoints);
    }

    /// Reads the body. Fields that a later version appends are skipped.
    ///
    /// # Errors
    /// A field is missing, malformed or out of range.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let version_min = reader.u16("version_min")?;
        let version_max = reader.u16("version_max")?;
        let role = match reader.u8("role")? {
            1 => Role::Router,
            2 => Role::Worker,
            other => return Err(invalid("role", u64::from(other))),
        };
        let features = reader.u64("features")?;
        let message_max = reader.u32("message_max")?;
        let streams_max = reader.u32("streams_max")?;
        let link_window = window(reader.u32("link_window")?, LINK_WINDOW_MIN, "link_window")?;
        let instance_id = reader.text(REQUEST_ID_MAX, "instance_id")?.to_owned();
        let namespace = reader.text(ENDPOINT_MAX, "namespace")?.to_owned();
        let length = reader.varint("token")?;
        if length > TOKEN_MAX {
            return Err(DecodeError::TooLong { what: "token", length, limit: TOKEN_MAX });
        }
        let token = reader.bytes(length, "token")?.to_vec();
        let endpoints = texts(&mut reader)?;
        Ok(Self {
            version_min,
            version_max,
            role,
            features,
            message_max,
            streams_max,
            link_window,
            instance_id,
            namespace,
            token,
            endpoints,
        })
    }

    /// The newest version that both sides understand.
    #[must_use]
    pub const fn common_version(&self) -> Option<u16> {
        let newest = if self.version_max < VERSION { self.version_max } else { VERSION };
        let oldest = if self.version_min > VERSION_MIN { self.version_min } else { VERSION_MIN };
        if newest >= oldest { Some(newest) } else { None }
    }
}

/// A worker's readiness and load, sent on change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether it takes new requests.
    pub ready: bool,
    /// Requests running.
    pub running: u32,
    /// Requests admitted and waiting.
    pub queued: u32,
    /// Its endpoints.
    pub endpoints: Vec<String>,
}

impl Status {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.ready));
        out.extend_from_slice(&self.running.to_le_bytes());
        out.extend_from_slice(&self.queued.to_le_bytes());
        put_texts(out, &self.endpoints);
    }

    /// Reads the body. Fields that a later version appends are skipped.
    ///
    /// # Errors
    /// A field is missing or malformed.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        Ok(Self {
            ready: reader.u8("ready")? != 0,
            running: reader.u32("running")?,
            queued: reader.u32("queued")?,
            endpoints: texts(&mut reader)?,
        })
    }
}

fn put_texts(out: &mut Vec<u8>, names: &[String]) {
    let names = names.get(..names.len().min(ENDPOINTS_MAX)).unwrap_or_default();
    put_varint(out, names.len());
    for name in names {
        put_text(out, name, ENDPOINT_MAX);
    }
}

fn texts(reader: &mut Reader<'_>) -> Result<Vec<String>, DecodeError> {
    let count = reader.varint("endpoints")?;
    if count > ENDPOINTS_MAX {
        return Err(DecodeError::TooLong { what: "endpoints", length: count, limit: ENDPOINTS_MAX });
    }
    (0..count).map(|_| reader.text(ENDPOINT_MAX, "endpoint").map(str::to_owned)).collect()
}
