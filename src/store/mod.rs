//! Where backups are kept: a folder, a bucket of S3 or Google, or an Azure container, all through crate `object_store`.
//!
//! An object appears whole or not at all, and is durable when the call returns: a folder gets it by a staging name,
//! fsync and rename, a bucket by one request or a completed multipart upload. Never decides what is written or deleted.

mod azure;
mod error;
mod google;
mod google_machine;
mod http;
mod lock;
mod lock_lease;
pub mod seal;
mod settings;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, path};

pub use error::StoreError;
pub use lock::{Lock, LockError};
pub use settings::{Destination, InvalidDestination, StoreSettings};

/// One part of a large object on its way; S3 wants at least 5 MiB, and at most 10,000 of them.
const PART_BYTES: usize = 8 << 20;
/// The same in a folder, where a part is a write.
const FOLDER_PART_BYTES: usize = 1 << 20;
/// Parts under way at once: with the one being filled they bound the memory.
const PARTS_AT_ONCE: usize = 2;

/// An object that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Below the destination.
    pub path: String,
    pub bytes: u64,
}

/// An open destination.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Within the bucket.
    prefix: path::Path,
    /// The folder, if it is one.
    folder: Option<PathBuf>,
    name: String,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.name).finish()
    }
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Store {
    /// As [`Store::open`], for a destination that may be new: a folder is made if its parent is there.
    ///
    /// # Errors
    /// As [`Store::open`], or the folder cannot be made.
    pub fn create(settings: &StoreSettings) -> Result<Self, StoreError> {
        if let Destination::Folder(path) = &settings.destination
            && let Err(source) = std::fs::create_dir(path)
            && source.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(StoreError::Folder {
                path: path.clone(),
                source,
            });
        }
        Self::open(settings)
    }

    /// Opens a destination.
    ///
    /// # Errors
    /// There is no such folder, or the settings of the bucket are no good. Nothing is asked of a bucket yet.
    pub fn open(settings: &StoreSettings) -> Result<Self, StoreError> {
        let name = settings.destination.to_string();
        match &settings.destination {
            Destination::Folder(folder) => Self::open_folder(folder, name),
            Destination::S3 { prefix, .. } => Self::remote(http::bucket(settings), prefix, name),
            Destination::Azure { prefix, .. } => Self::remote(azure::container(settings), prefix, name),
            Destination::Google { prefix, .. } => Self::remote(google::bucket(settings), prefix, name),
        }
    }

    fn remote<T: ObjectStore>(
        opened: Result<T, impl Into<Box<dyn std::error::Error + Send + Sync>>>,
        prefix: &str,
        name: String,
    ) -> Result<Self, StoreError> {
        let objects = opened.map_err(|error| StoreError::Settings {
            destination: name.clone(),
            source: error.into(),
        })?;
        Ok(Self {
            objects: Arc::new(objects),
            prefix: path::Path::from(prefix),
            folder: None,
            name,
        })
    }

    fn open_folder(folder: &Path, name: String) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Folder {
            path: folder.to_owned(),
            source,
        };
        let folder = folder.canonicalize().map_err(failed)?;
        let objects = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|source| StoreError::new("open", &name, source))?
            .with_fsync(true);
        Ok(Self {
            objects: Arc::new(objects),
            prefix: path::Path::default(),
            folder: Some(folder),
            name,
        })
    }

    /// The folder that it is; `None` for a bucket.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Writes a small object, over one that is there.
    pub async fn put(&self, path: &str, content: Bytes) -> Result<(), StoreError> {
        let put = self
            .objects
            .put(&self.place(path), PutPayload::from_bytes(content))
            .await;
        put.map(drop)
            .map_err(|source| StoreError::new("write", path, source))
    }

    /// Writes an object unless there is one already; says whether it did.
    pub async fn put_new(&self, path: &str, content: Bytes) -> Result<bool, StoreError> {
        let payload = PutPayload::from_bytes(content);
        match self
            .objects
            .put_opts(&self.place(path), payload, PutMode::Create.into())
            .await
        {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(source) => Err(StoreError::new("write", path, source)),
        }
    }

    /// A small object; `None` if there is none.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>, StoreError> {
        let failed = |source| StoreError::new("read", path, source);
        match self.objects.get(&self.place(path)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(failed),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    /// Whether there is such an object.
    pub async fn exists(&self, path: &str) -> Result<bool, StoreError> {
        match self.objects.head(&self.place(path)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(StoreError::new("look for", path, source)),
        }
    }

    /// A large object, piece by piece; an interrupted download goes on where it stopped.
    pub async fn read(
        &self,
        path: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        let name = path.to_owned();
        let failed = move |source| StoreError::new("read", &name, source);
        let found = self.objects.get(&self.place(path)).await.map_err(&failed)?;
        Ok(found.into_stream().map_err(failed).boxed())
    }

    /// A large object to be written; it appears when the writer is shut down.
    #[must_use]
    pub fn writer(&self, path: &str) -> BufWriter {
        let objects = Arc::clone(&self.objects);
        let part_bytes = if self.folder.is_some() {
            FOLDER_PART_BYTES
        } else {
            PART_BYTES
        };
        BufWriter::with_capacity(objects, self.place(path), part_bytes).with_max_concurrency(PARTS_AT_ONCE)
    }

    /// Every object below a folder of the destination, in order.
    pub async fn list(&self, below: &str) -> Result<Vec<Found>, StoreError> {
        let found = self.objects.list(Some(&self.place(below)));
        let found: Vec<_> = found
            .try_collect()
            .await
            .map_err(|source| StoreError::new("list", below, source))?;
        let mut found: Vec<Found> = found
            .iter()
            .map(|meta| Found {
                path: self.below(&meta.location),
                bytes: meta.size,
            })
            .collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The names of the folders directly below one.
    pub async fn folders(&self, below: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.objects.list_with_delimiter(Some(&self.place(below))).await;
        let listed = listed.map_err(|source| StoreError::new("list", below, source))?;
        let last = |path: &path::Path| path.parts().next_back().map(|part| part.as_ref().to_owned());
        let mut names: Vec<String> = listed.common_prefixes.iter().filter_map(last).collect();
        names.sort();
        Ok(names)
    }

    /// Deletes an object; none is as good.
    pub async fn delete(&self, path: &str) -> Result<(), StoreError> {
        match self.objects.delete(&self.place(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::new("delete", path, source)),
        }
    }

    /// Deletes everything below a folder, unfinished writes to a local one included.
    pub async fn delete_folder(&self, below: &str) -> Result<(), StoreError> {
        if let Some(folder) = &self.folder {
            let path = folder.join(below);
            return match tokio::fs::remove_dir_all(&path).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(StoreError::Folder { path, source: error })
                }
                _ => Ok(()),
            };
        }
        for found in self.list(below).await? {
            self.delete(&found.path).await?;
        }
        Ok(())
    }

    fn place(&self, path: &str) -> path::Path {
        path.split('/')
            .filter(|part| !part.is_empty())
            .fold(self.prefix.clone(), path::Path::join)
    }

    fn below(&self, place: &path::Path) -> String {
        let text = place.as_ref();
        let rest = text.strip_prefix(self.prefix.as_ref()).unwrap_or(text);
        rest.trim_start_matches('/').to_owned()
    }
}
