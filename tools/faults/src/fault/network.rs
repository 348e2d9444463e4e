//! Networks that partition, lose, delay, repeat and replay.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;

use super::{Fault, Scene, Who};
use crate::history::NodeId;
use crate::network::Rule;
use crate::proxy::Misbehavior;

/// What happens to blocked packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Drop,
    Reject,
}

impl Cut {
    fn rule(self, from: Ipv4Addr) -> Rule {
        match self {
            Cut::Drop => Rule::Drop(from),
            Cut::Reject => Rule::Reject(from),
        }
    }
}

impl Scene<'_> {
    fn address(&mut self, id: NodeId) -> Result<Ipv4Addr> {
        Ok(self.cluster.node(id)?.host.address)
    }

    /// Blocks packets on directed links between nodes.
    fn cut_links(&mut self, cut: Cut, links: &[(NodeId, NodeId)]) -> Result<()> {
        for id in self.cluster.ids() {
            let mut rules = Vec::new();
            for (from, _) in links.iter().filter(|(_, to)| *to == id) {
                rules.push(cut.rule(self.address(*from)?));
            }
            self.cluster.node(id)?.host.set_rules(&rules)?;
        }
        Ok(())
    }

    fn others(&self, ids: &[NodeId]) -> Vec<NodeId> {
        self.cluster.ids().into_iter().filter(|id| !ids.contains(id)).collect()
    }
}

/// All links from one group to the other.
fn links(from: &[NodeId], to: &[NodeId]) -> Vec<(NodeId, NodeId)> {
    from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))).collect()
}

pub async fn isolate(scene: &mut Scene<'_>, who: Who, cut: Cut) -> Result<String> {
    let targets = scene.choose(who).await?;
    let others = scene.others(&targets);
    // Each target is isolated from all other nodes.
    let mut broken = [links(&targets, &others), links(&others, &targets)].concat();
    broken.extend(links(&targets, &targets).into_iter().filter(|(from, to)| from != to));
    scene.cut_links(cut, &broken)?;
    scene.hold(700..4000).await;
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}"))
}

pub async fn halves(scene: &mut Scene<'_>) -> Result<String> {
    let mut ids = scene.cluster.ids();
    scene.random.shuffle(&mut ids);
    let (one, other) = ids.split_at(ids.len() / 2);
    scene.cut_links(Cut::Drop, &[links(one, other), links(other, one)].concat())?;
    scene.hold(700..4000).await;
    scene.cluster.heal()?;
    Ok(format!("{one:?} from {other:?}"))
}

pub async fn deaf(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    let others = scene.others(&targets);
    scene.cut_links(Cut::Drop, &links(&others, &targets))?;
    scene.hold(700..4000).await;
    scene.cluster.heal()?;
    Ok(format!("node {targets:?} receives nothing"))
}

pub async fn mute(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    let others = scene.others(&targets);
    scene.cut_links(Cut::Drop, &links(&targets, &others))?;
    scene.hold(700..4000).await;
    scene.cluster.heal()?;
    Ok(format!("nothing from node {targets:?} arrives"))
}

pub async fn ring(scene: &mut Scene<'_>) -> Result<String> {
    let mut ids = scene.cluster.ids();
    scene.random.shuffle(&mut ids);
    let mut broken = Vec::new();
    for (place, from) in ids.iter().enumerate() {
        for (other, to) in ids.iter().enumerate() {
            let distance = place.abs_diff(other);
            if distance > 1 && (ids.len() <= 3 || distance < ids.len() - 1) {
                broken.push((*from, *to));
            }
        }
    }
    scene.cut_links(Cut::Drop, &broken)?;
    scene.hold(1000..4000).await;
    scene.cluster.heal()?;
    Ok(format!("{ids:?}"))
}

pub async fn clients_cut(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    let clients = scene.cluster.network.clients();
    for id in &targets {
        scene.cluster.node(*id)?.host.set_rules(&[Rule::Drop(clients)])?;
    }
    scene.hold(700..2500).await;
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}"))
}

pub async fn loss(scene: &mut Scene<'_>) -> Result<String> {
    let percent = scene.random.u8(1..=50);
    let ids = scene.cluster.ids();
    for id in &ids {
        let mut rules = Vec::new();
        for other in ids.iter().filter(|other| *other != id) {
            rules.push(Rule::Lose(scene.address(*other)?, percent));
        }
        scene.cluster.node(*id)?.host.set_rules(&rules)?;
    }
    scene.hold(1000..4000).await;
    scene.cluster.heal()?;
    Ok(format!("{percent} %"))
}

pub async fn misbehave(scene: &mut Scene<'_>, fault: Fault) -> Result<String> {
    let mut misbehavior = Misbehavior::default();
    let percent = scene.random.u8(5..60);
    match fault {
        Fault::Delay => misbehavior.delay_max = Duration::from_millis(scene.random.u64(5..400)),
        Fault::Repeat => misbehavior.repeat_percent = percent,
        Fault::Replay => misbehavior.replay_percent = percent,
        _ => misbehavior.lose_answer_percent = percent,
    }
    let before = deeds(scene);
    for node in &scene.cluster.nodes {
        if let Some(proxy) = &node.proxy {
            proxy.misbehave(misbehavior);
        }
    }
    scene.hold(1000..3000).await;
    scene.cluster.heal()?;
    let done = deeds(scene) - before;
    if done == 0 {
        scene.did_nothing();
    }
    match fault {
        Fault::Delay => Ok(format!("up to {} ms, {done} times", 2 * misbehavior.delay_max.as_millis())),
        _ => Ok(format!("{percent} %, {done} times")),
    }
}

fn deeds(scene: &Scene<'_>) -> u64 {
    let proxies = scene.cluster.nodes.iter().filter_map(|node| node.proxy.as_ref());
    proxies
        .map(|proxy| {
            let deeds = proxy.deeds();
            let all = [&deeds.delayed, &deeds.repeated, &deeds.replayed, &deeds.answers_lost];
            all.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>()
        })
        .sum()
}
