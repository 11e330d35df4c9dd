//! Files that lie in object storage or on a web server: `s3://`, `gs://`, `az://`, `https://` and `http://`.
//!
//! A path of a configuration may be such an address. `InputFile` opens either kind: a file of this machine
//! as it is, an object by ranges that a background task fetches ahead of the reader. What an object is (its
//! size and ETag) is asked once in a process, when inputs are listed; one that is something else when it is
//! read is an error.
//!
//! Credentials, regions and endpoints come from the environment variables of the `object_store` crate. Where
//! there are none, requests are not signed, which public buckets allow.

mod client;
mod fetch;
mod file;
mod list;
mod location;
mod mirror;
mod object;
mod store;
pub mod tls;

pub(crate) use file::{InputFile, local_file};
pub(crate) use list::{Pattern, list};
pub(crate) use location::absolute;
pub use location::is_remote;
pub use mirror::{Mirror, MirroredPart, cached_folder};
pub(crate) use mirror::{committed, removed, stored_in, stored_length};
pub(crate) use object::{Object, describe_all};
