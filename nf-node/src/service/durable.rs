//! What a durable node keeps beside its logs: who it is, and the newest map that it knew.
//!
//! A node whose `durability` is `disk` comes back as the member that it was: under its id, with its
//! vote and its log (promise P6). That holds as long as all of it is there. If a log is damaged or
//! gone, or the cluster has given the node up meanwhile, the id is worth nothing any more: the
//! files are set aside, and the node joins as a newcomer, which catches up as a learner.
//!
//! The edge: reads and writes files.

use super::NodeError;
use super::life::Life;
use super::stopped::StoppedError;
use crate::node_config::NodeConfig;
use nearstate_placement::api::Response;
use nearstate_placement::{Map, Member, MemberState};
use nearstate_store::ShardId;
use nearstate_store::disk::{self, DiskConfig, Verdict};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Longest file that says who the node is.
const IDENTITY_BYTES_MAX: u64 = 64 << 10;
/// Longest file of a configuration.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Longest file of a map.
const MAP_BYTES_MAX: u64 = 8 << 20;

/// A durable node's directory.
#[derive(Clone, Debug)]
pub(super) struct Home {
    path: PathBuf,
    /// The node's name.
    name: String,
}

/// What was found at home.
pub(super) enum Found {
    /// Nothing, or a first start that did not get far.
    Nobody,
    /// A life that can go on, and the map that it knew.
    Life(Life, Map),
    /// A life whose memory is gone, and who may know the cluster.
    Lost(Vec<SocketAddr>),
}

impl Home {
    pub(super) fn of(config: &NodeConfig) -> Self {
        let name = format!("{}.{}.disk", config.cluster, config.name);
        Self { path: config.lasting_directory().join(name), name: config.name.clone() }
    }

    /// Where the store keeps its logs. `returning`: they must be there.
    pub(super) fn logs(&self, returning: bool) -> DiskConfig {
        DiskConfig { must_exist: returning, ..DiskConfig::new(self.path.clone()) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> NodeError + '_ {
        |source| NodeError::File { path: path.to_owned(), source }
    }

    /// Looks who was here, and whether all that it remembered still is.
    pub(super) fn look(&self) -> Result<Found, NodeError> {
        let path = self.file("identity");
        let text = match read(&path, IDENTITY_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // It is written before anything is voted on; without it all else is worth nothing.
                return self.clear().map(|()| Found::Nobody);
            }
            other => other.map_err(Self::failed(&path))?,
        };
        let Some(life) = Life::decode(&text) else {
            tracing::error!(path = %path.display(), "who this node was cannot be read");
            return self.lose();
        };
        let map = self.map();
        if map.members.iter().any(|m| m.id == life.node && !m.state.is_live()) {
            tracing::warn!(node = %life.node, "the cluster has given this node's last life up");
            return self.lose();
        }
        let report = disk::verify(&self.path).map_err(NodeError::Disk)?;
        for shard in (0..=life.shards).map(ShardId) {
            if let Some(why) = loss(&report, shard) {
                tracing::error!(%shard, why, "the memory of this node is damaged");
                return self.lose();
            }
        }
        Ok(Found::Life(life, map))
    }

    /// Sets everything aside.
    pub(super) fn lose(&self) -> Result<Found, NodeError> {
        let map = self.map();
        let known = |m: &&Member| m.state == MemberState::Alive && m.name != self.name;
        let seeds = map.members.iter().filter(known).map(|member| member.address).collect();
        let aside = disk::set_aside(&self.path).map_err(Self::failed(&self.path))?;
        tracing::warn!(to = %aside.display(), "set this node's old files aside; it joins anew");
        Ok(Found::Lost(seeds))
    }

    fn clear(&self) -> Result<(), NodeError> {
        let failed = Self::failed;
        std::fs::create_dir_all(&self.path).map_err(failed(&self.path))?;
        let left = std::fs::read_dir(&self.path).map_err(failed(&self.path))?.count();
        if left > 0 {
            disk::set_aside(&self.path).map_err(failed(&self.path))?;
            std::fs::create_dir_all(&self.path).map_err(failed(&self.path))?;
        }
        Ok(())
    }

    /// The newest map that was saved, if it can be read: it only tells where to look for others.
    fn map(&self) -> Map {
        let Ok(bytes) = read(&self.file("map"), MAP_BYTES_MAX) else { return Map::unformed() };
        match Response::decode(&bytes) {
            Ok(Response::Map(map)) => map,
            _ => Map::unformed(),
        }
    }

    /// Keeps a map for the next start.
    pub(super) fn save_map(&self, map: &Map) {
        let bytes = Response::Map(map.clone()).encode();
        if let Err(error) = self.replace("map", &bytes) {
            // The next one may be kept again; without any the node asks its seeds.
            tracing::warn!(%error, "the map cannot be kept for the next start");
        }
    }

    /// Says who the node is, durably.
    pub(super) fn save(&self, life: &Life) -> Result<(), NodeError> {
        std::fs::create_dir_all(&self.path).map_err(Self::failed(&self.path))?;
        self.replace("identity", &life.encode()).map_err(Self::failed(&self.path))
    }

    /// Keeps the configuration beside the logs: whoever looks at them when the node has stopped
    /// needs to know which tables and pools they are about.
    pub(super) fn save_config(&self, config: &NodeConfig) -> Result<(), NodeError> {
        let text = toml::to_string(config).expect("what was read as TOML can be written");
        self.replace("config.toml", text.as_bytes()).map_err(Self::failed(&self.path))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let unfinished = self.file(&format!("{name}.tmp"));
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, self.file(name))?;
        File::open(&self.path)?.sync_all()
    }
}

/// Who left a directory, and with which configuration. Changes nothing.
pub(super) fn inhabitant(directory: &Path) -> Result<(Life, NodeConfig), StoppedError> {
    let missing = |name: &str| {
        let path = directory.join(name);
        move |source| StoppedError::File { path, source }
    };
    let text =
        read(&directory.join("identity"), IDENTITY_BYTES_MAX).map_err(missing("identity"))?;
    let unusable = |name: &str| StoppedError::Unusable(directory.join(name));
    let life = Life::decode(&text).ok_or_else(|| unusable("identity"))?;
    let text = read(&directory.join("config.toml"), CONFIG_BYTES_MAX);
    let text = text.map_err(missing("config.toml"))?;
    let text = core::str::from_utf8(&text).map_err(|_| unusable("config.toml"))?;
    let config = NodeConfig::parse(text).map_err(|_| unusable("config.toml"))?;
    Ok((life, config))
}

/// Why a shard's log cannot be gone on with, if it is damaged or missing.
fn loss(report: &disk::Report, shard: ShardId) -> Option<String> {
    let missing = || Some("its log is missing".to_owned());
    let name = shard.to_string();
    let Some(found) = report.shards.iter().find(|found| found.name == name) else {
        return missing();
    };
    match &found.verdict {
        Verdict::Unusable(disk::RecoveryError::Damaged(damage)) => Some(damage.to_string()),
        Verdict::Empty => missing(),
        // Files of another version or another node are refused when they are opened.
        Verdict::Whole | Verdict::TornTail(_) | Verdict::Unusable(_) => None,
    }
}

pub(super) fn read(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::super::life::sample;
    use super::*;

    #[test]
    fn a_first_start_that_did_not_get_far_is_nobodys() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home { path: directory.path().join("c.n1.disk"), name: "n1".to_owned() };
        assert!(matches!(home.look().unwrap(), Found::Nobody));
        std::fs::create_dir(home.path.join("shard-0")).unwrap();
        assert!(matches!(home.look().unwrap(), Found::Nobody));
        assert!(!home.path.join("shard-0").exists());
        assert!(directory.path().join("c.n1.disk.damaged/shard-0").exists());
    }

    #[test]
    fn a_life_without_its_logs_is_lost_and_its_files_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home { path: directory.path().join("c.n1.disk"), name: "n1".to_owned() };
        for suffix in ["", "-2"] {
            assert!(matches!(home.look().unwrap(), Found::Nobody));
            home.save(&sample()).unwrap();
            assert!(matches!(home.look().unwrap(), Found::Lost(seeds) if seeds.is_empty()));
            let aside = directory.path().join(format!("c.n1.disk.damaged{suffix}"));
            assert!(aside.join("identity").exists());
        }
    }
}
