//! `members`: shows and changes the members of the cluster.

use std::time::Instant;

use raft_key_value::client::{AddMember, AddedRole, Member, MemberChanged, MemberOptions, MemberRole, ReplaceMember};
use raft_key_value::telemetry::logging::say;
use raft_key_value::{ClientError, ExampleClient};
use serde::Serialize;

use super::arguments::{ChangeOptions, MembersAction};
use super::failure::Failure;
use super::output::{Output, printable};

/// A member as `members list` shows it.
#[derive(Debug, Serialize)]
struct Listed {
    node: u64,
    role: &'static str,
    addr: String,
}

/// `members` and the commands below it.
pub async fn run(client: &ExampleClient, output: Output, action: Option<MembersAction>) -> Result<(), Failure> {
    match action {
        None | Some(MembersAction::List(_)) => list(client, output).await,
        Some(MembersAction::Add(add)) => {
            let role = if add.learner { AddedRole::Learner } else { AddedRole::Voter };
            let member = AddMember { id: add.id, address: add.address, role };
            let changed = until_done(&add.options, |options| client.add_member(&member, options)).await;
            changed.and_then(|changed| print(output, &changed, &changed.message, &changed.members))
        }
        Some(MembersAction::Promote(one)) => {
            let changed = until_done(&one.options, |options| client.promote_member(one.id, options)).await;
            changed.and_then(|changed| print(output, &changed, &changed.message, &changed.members))
        }
        Some(MembersAction::Replace(replace)) => {
            let by = ReplaceMember { id: replace.id, address: replace.address };
            let changed =
                until_done(&replace.options, |options| client.replace_member(replace.old, &by, options)).await;
            changed.and_then(|changed| print(output, &changed, &changed.message, &changed.members))
        }
        Some(MembersAction::Remove(one)) => {
            let removed = client.remove_member(one.id, member_options(&one.options)).await?;
            warn_of(removed.risk.as_deref());
            let verb = if removed.dry_run { "would be" } else { "was" };
            print(output, &removed, &format!("node {} {verb} removed", removed.removed), &removed.members)
        }
    }
}

fn member_options(options: &ChangeOptions) -> MemberOptions {
    MemberOptions { dry_run: options.dry_run, force: options.force }
}

fn warn_of(risk: Option<&str>) {
    if let Some(risk) = risk {
        say(&format!("warning: without --force this would be rejected: {}\n", printable(risk)));
    }
}

/// Repeats a request until it is complete, and says once for each change what is missing.
async fn until_done<Sent>(
    arguments: &ChangeOptions,
    send: impl Fn(MemberOptions) -> Sent,
) -> Result<MemberChanged, Failure>
where
    Sent: Future<Output = Result<MemberChanged, ClientError>>,
{
    let started = Instant::now();
    let mut said = String::new();
    loop {
        let changed = send(member_options(arguments)).await?;
        if changed.done {
            warn_of(changed.risk.as_deref());
            return Ok(changed);
        }
        if started.elapsed() >= arguments.wait {
            let message = format!("{}; the same command continues", printable(&changed.message));
            return Err(Failure::Unavailable(message));
        }
        if changed.message != said {
            say(&format!("waiting: {}\n", printable(&changed.message)));
            said = changed.message;
        }
    }
}

fn print(mut output: Output, answer: &impl Serialize, message: &str, members: &[Member]) -> Result<(), Failure> {
    let written = if output.is_json() {
        output.line(answer, "")
    } else {
        let role = |member: &Member| match member.role {
            MemberRole::Learner => "learner",
            MemberRole::Leader | MemberRole::Voter => "voter",
        };
        let rows = members.iter().map(|member| (member.id, role(member), member.address.clone()));
        output.bytes(format!("{}\n", printable(message)).as_bytes()).and_then(|()| output.table(&table(rows)))
    };
    written.and_then(|()| output.flush()).map_err(|error| Failure::Unwritten { result: message.to_owned(), error })
}

fn table<'a>(members: impl Iterator<Item = (u64, &'a str, String)>) -> Vec<Vec<String>> {
    let header = ["NODE", "ROLE", "ADDRESS"].map(str::to_owned).to_vec();
    let rows = members.map(|(id, role, address)| vec![id.to_string(), role.to_owned(), address]);
    std::iter::once(header).chain(rows).collect()
}

async fn list(client: &ExampleClient, mut output: Output) -> Result<(), Failure> {
    let metrics = client.metrics().await?;
    let membership = metrics.membership_config.membership();
    let voters: Vec<u64> = membership.voter_ids().collect();
    let role_of = |id: &u64| if voters.contains(id) { "voter" } else { "learner" };
    let members = membership.nodes().map(|(id, node)| Listed { node: *id, role: role_of(id), addr: node.addr.clone() });
    let members: Vec<Listed> = members.collect();
    if members.is_empty() {
        return Err(Failure::Unavailable(format!("node {} belongs to no cluster, or has lost its data", metrics.id)));
    }
    if output.is_json() {
        members.iter().try_for_each(|member| output.line(member, ""))?;
    } else {
        output.table(&table(members.iter().map(|member| (member.node, member.role, member.addr.clone()))))?;
    }
    output.flush()?;
    Ok(())
}
