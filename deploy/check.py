"""The checks of check.sh. Arguments: the directory of prometheus and promtool, and the server."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ALERTS = os.path.join(HERE, "alerts.yml")
DASHBOARD = os.path.join(HERE, "grafana.json")
DEADLINE = 60
# The least that a node allows. The load takes a fraction of it.
QUOTA_BYTES = 1 << 20
# A key of a tenth of the quota: less than a fifth is left when the next one is rejected.
FILLER = "v" * (QUOTA_BYTES // 10)
FILLERS_MAX = 10

# The series of a healthy cluster, and their values every 15 seconds.
NODE = 'job="raft-key-value",instance="a"'
HEALTHY = {
    f"up{{{NODE}}}": "1x100",
    f"rkv_raft_is_leader{{{NODE}}}": "1x100",
    'rkv_raft_is_leader{job="raft-key-value",instance="b"}': "0x100",
    f'rkv_ready{{{NODE},check="leader"}}': "1x100",
    f"rkv_raft_failures_tolerated{{{NODE}}}": "1x100",
    f"rkv_raft_voters{{{NODE}}}": "3x100",
    f'rkv_raft_peer_silence_seconds{{{NODE},peer="2"}}': "0.1x100",
    f'rkv_raft_peer_lag_entries{{{NODE},peer="2"}}': "5x100",
    f"rkv_raft_leader_changes_total{{{NODE}}}": "1x100",
    f'rkv_log_sync_duration_seconds_bucket{{{NODE},le="0.01"}}': "0+100x100",
    f'rkv_log_sync_duration_seconds_bucket{{{NODE},le="0.5"}}': "0+100x100",
    f'rkv_log_sync_duration_seconds_bucket{{{NODE},le="+Inf"}}': "0+100x100",
    f"rkv_disk_free_bytes{{{NODE}}}": "50000000000x100",
    f"rkv_disk_is_low{{{NODE}}}": "0x100",
    f"rkv_quota_used_bytes{{{NODE}}}": "500000000x100",
    f"rkv_quota_bytes{{{NODE}}}": "1000000000x100",
    f"rkv_quota_rejections_total{{{NODE}}}": "0x100",
    f"rkv_log_is_full{{{NODE}}}": "0x100",
    f"rkv_snapshot_build_failures_total{{{NODE}}}": "0x100",
    f"rkv_snapshot_install_failures_total{{{NODE}}}": "0x100",
    f"rkv_snapshot_send_failures_total{{{NODE}}}": "0x100",
    f"rkv_http_requests_shed_total{{{NODE}}}": "0x100",
    f'rkv_http_requests_total{{{NODE},route="/write",status="2xx"}}': "0+100x100",
    f'rkv_http_requests_total{{{NODE},route="/write",status="5xx"}}': "0+1x100",
    f'rkv_http_requests_total{{{NODE},route="/raft-append",status="5xx"}}': "0+100x100",
    f"rkv_wall_time_seconds{{{NODE}}}": "0.5+15x100",
    f"rkv_process_open_fds{{{NODE}}}": "100x100",
    f"rkv_process_max_fds{{{NODE}}}": "1024x100",
}

# What happens, the start of the name of the series that it changes, its values then, and the alert that fires, alone.
# The first matching series changes.
CAUSES = [
    ("nothing", {}, None),
    ("a node is down", {"up": "0x100"}, "RkvNodeDown"),
    ("no node leads", {"rkv_raft_is_leader": "0x100"}, "RkvNoLeader"),
    ("a node knows no leader", {"rkv_ready": "0x100"}, "RkvNotReady"),
    ("one of three voters is lost", {"rkv_raft_failures_tolerated": "0x100"}, "RkvQuorumAtRisk"),
    ("the only voter", {"rkv_raft_failures_tolerated": "0x100", "rkv_raft_voters": "1x100"}, None),
    ("a member does not respond", {"rkv_raft_peer_silence_seconds": "0+15x100"}, "RkvMemberUnreachable"),
    ("a member lags", {"rkv_raft_peer_lag_entries": "0+1000x100"}, "RkvMemberLagging"),
    ("the leader changes often", {"rkv_raft_leader_changes_total": "0+0.1x100"}, "RkvFrequentElections"),
    ("a slow disk", {"rkv_log_sync_duration_seconds_bucket": "0+50x100"}, "RkvSlowSync"),
    ("a disk is nearly full", {"rkv_disk_free_bytes": "1000000000x100"}, "RkvDiskNearlyFull"),
    ("puts are rejected", {"rkv_disk_is_low": "1x100"}, "RkvDiskLow"),
    ("the quota is nearly used up", {"rkv_quota_used_bytes": "900000000x100"}, "RkvQuotaNearlyUsed"),
    ("writes exceed the quota", {"rkv_quota_rejections_total": "0+1x100"}, "RkvQuotaExceeded"),
    ("the log has its limit of files", {"rkv_log_is_full": "1x100"}, "RkvLogFull"),
    ("snapshots are not written", {"rkv_snapshot_build_failures_total": "0+1x100"}, "RkvSnapshotsFail"),
    ("snapshots are not installed", {"rkv_snapshot_install_failures_total": "0+1x100"}, "RkvSnapshotsFail"),
    ("snapshots are not sent", {"rkv_snapshot_send_failures_total": "0+1x100"}, "RkvSnapshotsFail"),
    ("requests are shed", {"rkv_http_requests_shed_total": "0+10x100"}, "RkvOverloaded"),
    ("few requests succeed", {"rkv_http_requests_total": "0+1x100"}, "RkvErrors"),
    ("a clock is ahead", {"rkv_wall_time_seconds": "10+15x100"}, "RkvClocksApart"),
    ("few open files are left", {"rkv_process_open_fds": "900x100"}, "RkvOpenFiles"),
]

# For the real cluster: short windows and low thresholds, so that the test need not wait.
SHORTER = [
    (r"for: \w+", "for: 2s"),
    (r"\[5m\]", "[10s]"),
    (r"\[15m\]", "[30s]"),
    (r"silence_seconds > 30", "silence_seconds > 3"),
    (r"lag_entries > 10000", "lag_entries > 10"),
    (r"leader_changes_total\[30s\]\) > 3", "leader_changes_total[30s]) > 1"),
]


# A disk whose syncs take longer than the rule allows.
SLOW_SYNC = """
#include <unistd.h>
#include <sys/syscall.h>
int fdatasync(int file) { usleep(150000); return syscall(SYS_fdatasync, file); }
"""


def alert_rules():
    """The name and the expression of each alert."""
    text = open(ALERTS).read()
    rules = {}
    for part in text.split("- alert: ")[1:]:
        name, rest = part.split("\n", 1)
        # A folded expression continues on lines that are indented deeper.
        lines = rest.split("        expr: ", 1)[1].split("\n")
        folded = [line.strip() for line in lines[1:]]
        end = next(number for number, line in enumerate(lines[1:]) if not line.startswith("          "))
        rules[name] = lines[0] if lines[0] != ">-" else " ".join(folded[:end])
    return rules


def test_rules(promtool, scratch):
    """Tests each alert on series that describe its cause."""
    tests = []
    for cause, changes, alert in CAUSES:
        series = dict(HEALTHY)
        for name, values in changes.items():
            series[next(one for one in series if one.split("{")[0] == name)] = values
        samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else []
        firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
        tests.append({
            "name": cause,
            "interval": "15s",
            "input_series": [{"series": one, "values": values} for one, values in series.items()],
            "promql_expr_test": [{"expr": firing, "eval_time": "20m", "exp_samples": samples}],
        })
    untested = set(alert_rules()) - {alert for _, _, alert in CAUSES}
    assert not untested, f"no cause for {untested}"
    path = os.path.join(scratch, "alerts_test.yml")
    # JSON is YAML, too.
    with open(path, "w") as file:
        json.dump({"rule_files": [ALERTS], "evaluation_interval": "15s", "tests": tests}, file)
    subprocess.run([promtool, "check", "rules", ALERTS], check=True)
    subprocess.run([promtool, "test", "rules", path], check=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def send(method, url, body=None):
    """The status and the body of a response."""
    request = urllib.request.Request(url, method=method, data=body and body.encode())
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def eventually(what, probe):
    """Waits until the probe returns nothing that is missing."""
    until = time.monotonic() + DEADLINE
    while missing := probe():
        if time.monotonic() > until:
            sys.exit(f"check.py: not within {DEADLINE} s: {what}; missing: {missing}")
        time.sleep(0.3)
    print(f"{what}: yes", flush=True)


class Cluster:
    """Three nodes, and clients that read and write all the time."""

    def __init__(self, server, scratch):
        self.server, self.scratch = server, scratch
        self.ports = {number: free_port() for number in (1, 2, 3)}
        self.nodes = {}
        for number in self.ports:
            self.start(number)
        members = [[number, f"127.0.0.1:{port}"] for number, port in self.ports.items()]
        eventually("the cluster is formed", lambda: self.send(1, "POST", "/init", json.dumps(members))[0] != 200)
        self.is_loaded = True
        for number in self.ports:
            threading.Thread(target=self.load, args=(number,), daemon=True).start()

    def start(self, number, *flags, preload=""):
        log = open(os.path.join(self.scratch, f"node-{number}.log"), "a")
        arguments = ["--id", str(number), "--http-addr", f"127.0.0.1:{self.ports[number]}", "--data-dir", self.scratch,
                     "--quota-bytes", str(QUOTA_BYTES)]
        environment = {**os.environ, "LD_PRELOAD": preload}
        self.nodes[number] = subprocess.Popen([self.server, *arguments, *flags], stderr=log, env=environment)

    def send(self, number, method, path, body=None):
        return send(method, f"http://127.0.0.1:{self.ports[number]}{path}", body)

    def load(self, number):
        count = 0
        while self.is_loaded:
            count += 1
            key = f"/v1/kv/{number}-{count % 100}"
            self.send(number, "PUT", key, "value")
            self.send(number, "GET", key)
            time.sleep(0.02)

    def send_filler(self, method, number, *wanted):
        """The status of putting or deleting one of the keys that fill the quota, once it is one of those wanted."""
        until = time.monotonic() + DEADLINE
        while True:
            status = self.send(self.leader() or 1, method, f"/v1/kv/filler-{number}",
                               FILLER if method == "PUT" else None)[0]
            if status in wanted:
                return status
            if time.monotonic() > until:
                sys.exit(f"check.py: {method} of a key that fills the quota returns {status}")
            time.sleep(0.3)

    def put_filler(self, number):
        return self.send_filler("PUT", number, 200, 507)

    def fill_quota(self):
        """Puts keys until one is rejected; returns its number."""
        for number in range(FILLERS_MAX):
            if self.put_filler(number) == 507:
                return number
        sys.exit(f"check.py: {FILLERS_MAX} keys of a tenth of the quota fit into it")

    def leader(self):
        for number in self.ports:
            status, body = self.send(number, "GET", "/metrics")
            if status == 200 and json.loads(body)["Ok"]["state"] == "Leader":
                return number
        return None

    def signal(self, number, which):
        self.nodes[number].send_signal(which)
        if which in (signal.SIGKILL, signal.SIGTERM):
            self.nodes[number].wait()

    def end(self):
        self.is_loaded = False
        for node in self.nodes.values():
            node.kill()
            node.wait()


class Prometheus:
    """A Prometheus that scrapes the nodes every second."""

    def __init__(self, program, ports, scratch):
        rules = open(ALERTS).read()
        for pattern, shorter in SHORTER:
            rules, count = re.subn(pattern, shorter, rules)
            assert count, f"{pattern} is not in {ALERTS}"
        with open(os.path.join(scratch, "rules.yml"), "w") as file:
            file.write(rules)
        targets = [f"127.0.0.1:{port}" for port in ports]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [os.path.join(scratch, "rules.yml")],
            "scrape_configs": [{"job_name": "raft-key-value", "static_configs": [{"targets": targets}]}],
        }
        with open(os.path.join(scratch, "prometheus.yml"), "w") as file:
            json.dump(config, file)
        self.addr = f"127.0.0.1:{free_port()}"
        log = open(os.path.join(scratch, "prometheus.log"), "w")
        self.process = subprocess.Popen(
            [program, f"--config.file={scratch}/prometheus.yml", f"--storage.tsdb.path={scratch}/tsdb",
             f"--web.listen-address={self.addr}"], stdout=log, stderr=log)

    def query(self, expression):
        status, body = send("GET", f"http://{self.addr}/api/v1/query?query={urllib.parse.quote(expression)}")
        assert status in (0, 200, 503), f"{expression}: {body}"
        return json.loads(body)["data"]["result"] if status == 200 else []

    def firing(self):
        return {found["metric"]["alertname"] for found in self.query('ALERTS{alertstate="firing"}')}

    def is_over(self, alert):
        """Whether an alert has fired and does not fire now. A query that fails tells neither."""
        fired = self.query(f'last_over_time(ALERTS{{alertname="{alert}",alertstate="firing"}}[5m])')
        return fired != [] and alert not in self.firing() and self.query("up") != []

    def end(self):
        self.process.kill()
        self.process.wait()


def expressions():
    """Every expression of the dashboard and of the alerts, the latter without their thresholds."""
    found = []
    for panel in json.load(open(DASHBOARD))["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$job", "raft-key-value").replace("$__rate_interval", "10s")
            found.append(expression)
    for expression in alert_rules().values():
        for part in re.split(r" or | and on \(instance\) ", expression):
            part = re.sub(r" (==|>|<) [0-9.]+$", "", part)
            found.append(re.sub(r"\[\d+m\]", "[10s]", part))
    return found


def test_cluster(programs, server, scratch):
    cluster = Cluster(server, scratch)
    prometheus = Prometheus(os.path.join(programs, "prometheus"), cluster.ports.values(), scratch)
    fired = set()

    def fires(cause, *alerts, meanwhile=lambda: None):
        def missing():
            meanwhile()
            return set(alerts) - prometheus.firing()

        eventually(f"{cause}: {', '.join(alerts)}", missing)
        fired.update(prometheus.firing())

    try:
        # An expression for requests that fail has no data before there are some.
        cluster.send(1, "GET", "/v1/kv/missing")
        wanted = [one for one in expressions() if 'status="5xx"' not in one]
        eventually("every expression returns data", lambda: [one for one in wanted if not prometheus.query(one)])
        loud = prometheus.firing() - {"RkvDiskNearlyFull", "RkvSlowSync", "RkvFrequentElections"}
        assert not loud, f"alerts fire while all is well: {loud}"

        rejected = cluster.fill_quota()
        fires("the quota is full", "RkvQuotaNearlyUsed", "RkvQuotaExceeded",
              meanwhile=lambda: cluster.put_filler(rejected))
        for number in range(rejected):
            cluster.send_filler("DELETE", number, 200, 404)
        eventually("keys are deleted: RkvQuotaNearlyUsed ends", lambda: not prometheus.is_over("RkvQuotaNearlyUsed"))

        paused = next(number for number in cluster.ports if number != cluster.leader())
        cluster.signal(paused, signal.SIGSTOP)
        fires("a follower is paused", "RkvMemberUnreachable", "RkvMemberLagging", "RkvQuorumAtRisk", "RkvNodeDown")
        cluster.signal(paused, signal.SIGCONT)
        lost = [number for number in cluster.ports if number != paused]
        for number in lost:
            cluster.signal(number, signal.SIGKILL)
        fires("a majority is killed", "RkvNoLeader", "RkvNotReady", "RkvErrors")
        for number in lost:
            cluster.start(number, "--min-disk-free-bytes", str(1 << 60))
        fires("the disks of two nodes are low", "RkvDiskLow", "RkvErrors")
        failing = [one for one in expressions() if 'status="5xx"' in one]
        eventually("the others return data, too", lambda: [one for one in failing if not prometheus.query(one)])
        for _ in range(3):
            leader = cluster.leader()
            if leader is not None:
                cluster.signal(leader, signal.SIGTERM)
                cluster.start(leader)
                eventually("there is another leader", lambda: cluster.leader() is None)
        fires("the leader changes several times", "RkvFrequentElections")

        with open(os.path.join(scratch, "slow.c"), "w") as file:
            file.write(SLOW_SYNC)
        slow = os.path.join(scratch, "slow.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", slow, os.path.join(scratch, "slow.c")], check=True)
        cluster.signal(paused, signal.SIGTERM)
        cluster.start(paused, preload=slow)
        fires("the disk of a node is slow", "RkvSlowSync")
    finally:
        prometheus.end()
        cluster.end()
    print(f"fired in the cluster: {', '.join(sorted(fired))}")


def main():
    programs, server = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="rkv-check-") as scratch:
        test_rules(os.path.join(programs, "promtool"), scratch)
        test_cluster(programs, os.path.abspath(server), scratch)


if __name__ == "__main__":
    main()
