//! What openraft requires of any storage.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use raft_key_value::TypeConfig;
use raft_key_value::store::{ExampleStore, LogStore, StateMachineStore};
use tempfile::TempDir;

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, StateMachineStore, (ExampleStore, TempDir)> for OnDisk {
    async fn build(&self) -> Result<((ExampleStore, TempDir), LogStore, StateMachineStore), StorageError<TypeConfig>> {
        let directory = tempfile::tempdir().unwrap();
        let store = ExampleStore::open(directory.path(), 1).unwrap();
        let (log, state_machine) = (store.log.clone(), store.state_machine.clone());
        Ok(((store, directory), log, state_machine))
    }
}

/// The store meets the requirements of openraft.
///
/// Method: run openraft's own suite, each case on a new data directory.
#[tokio::test]
async fn passes_openrafts_suite() {
    Suite::test_all(OnDisk).await.unwrap();
}
