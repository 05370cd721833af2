//! What is not as it should be on the network.

use crate::ground::Ground;

#[test]
fn bridge_address_and_backup() {
    let ground = Ground::new();
    let (bed, nobody) = (&ground.bed, ground.bed.address(77));
    let (own, client, free) = (bed.address(1), bed.address(3), bed.address(10));
    let to = |backup: &str, ip, bridge: &str| {
        format!(
            "run --name bad --backup {backup} --ip {ip}/24 --bridge {bridge} --insecure -- true"
        )
    };
    let backup = ground.backup_address().to_string();
    let table: &[(String, &[&str])] = &[
        (
            to("none", client, "br0"),
            &[&format!("{client} is already taken by the host with ")],
        ),
        (
            to(&backup, client, "br0"),
            &[&format!("{client} is already taken"), "--ip"],
        ),
        (
            to(&backup, own, "br0"),
            &[&format!("{own} is already taken by this host"), "--ip"],
        ),
        (
            to(&backup, free, "nowhere"),
            &["no bridge \"nowhere\"", "ip link add"],
        ),
        (to(&backup, free, "lo"), &["\"lo\" is not a bridge"]),
        // Nobody listens there.
        (
            to(&backup, free, "br0"),
            &[&backup, "refused", "understudy backup --listen"],
        ),
        // Nobody answers there.
        (
            to(&format!("{nobody}:7400"), free, "br0"),
            &[&format!("{nobody}:7400"), "timed out"],
        ),
    ];
    for (line, mentions) in table {
        ground.fails(line, mentions);
    }
    let missing = format!("backup --listen {own}:7400 --bridge nowhere --insecure");
    ground.fails(&missing, &["no bridge \"nowhere\""]);
    let elsewhere = format!("backup --listen {nobody}:7400 --insecure --state state");
    ground.fails(&elsewhere, &[&format!("cannot listen at {nobody}:7400")]);
}
