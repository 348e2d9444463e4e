"""The checks of check.sh. Arguments: Chromium, and the server."""

import http.server
import json
import os
import re
import shutil
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
# Seconds.
DEADLINE = 30
# Seconds of one browser.
RUN_DEADLINE = 60

# What the nodes hold. No page may read it.
SECRET = "the value that no page may read"
REQUEST_LINE = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n")
STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def eventually(what, probe, deadline=DEADLINE):
    """Waits until the probe returns a true value, and returns it."""
    until = time.monotonic() + deadline
    while not (found := probe()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {deadline} s: {what}")
        time.sleep(0.02)
    return found


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def send(method, url, body=None):
    """The status and the JSON of a response; 0 if there is none."""
    request = urllib.request.Request(url, method=method, data=None if body is None else body.encode())
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            status, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    except OSError:
        return 0, None
    return status, json.loads(text)


class Relay:
    """Passes connections on to a target, and notes the requests and the statuses of the responses.

    The target may change, as the address of a name does after DNS rebinding.
    """

    def __init__(self, target):
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.connections, self.clients = [], []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            seen = (bytearray(), bytearray())
            with self.lock:
                try:
                    node = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                self.connections.append(seen)
                self.clients.append(client)
            threading.Thread(target=self.pump, args=(client, node, seen[0]), daemon=True).start()
            threading.Thread(target=self.pump, args=(node, client, seen[1]), daemon=True).start()

    def pump(self, source, sink, seen):
        try:
            while data := source.recv(65536):
                # Noted first, so that a response is never seen before its request.
                with self.lock:
                    seen.extend(data)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def rebind(self, target):
        """Changes the target. A browser may have opened connections in advance, to the former one: they are closed."""
        with self.lock:
            self.target = target
            for client in self.clients:
                try:
                    client.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def begin(self):
        """Forgets what was noted."""
        with self.lock:
            for seen in self.connections:
                seen[0].clear()
                seen[1].clear()

    def exchanges(self):
        """Each request that has a response, with its status; `None` if a response is missing, or nothing was sent."""
        found = []
        with self.lock:
            for sent, received in self.connections:
                requests = [f"{method.decode()} {target.decode()}" for method, target in REQUEST_LINE.findall(sent)]
                statuses = [int(status) for status in STATUS_LINE.findall(received)]
                if len(requests) != len(statuses):
                    return None
                found += zip(requests, statuses)
        return found or None


class Cluster:
    """Three nodes, and two that belong to no cluster."""

    def __init__(self, server, scratch, flags):
        self.nodes, self.ports, self.scratch = [], {}, scratch
        os.makedirs(scratch)
        self.log_path = os.path.join(scratch, "log")
        self.log = open(self.log_path, "w")
        try:
            for number in range(1, 6):
                self.ports[number] = free_port()
                arguments = ["--id", str(number), "--http-addr", f"127.0.0.1:{self.ports[number]}"]
                # An election would change the term.
                calm = ["--data-dir", scratch, "--heartbeat-interval-ms", "500",
                        "--election-timeout-min-ms", "5000", "--election-timeout-max-ms", "10000"]
                arguments += calm
                self.nodes.append(subprocess.Popen([server, *arguments, *flags], stdout=self.log, stderr=self.log))
            members = json.dumps([[number, f"127.0.0.1:{self.ports[number]}"] for number in (1, 2, 3)])
            eventually("the cluster is formed", lambda: self.send(1, "POST", "/init", members)[0] == 200)
            eventually("the value is written", lambda: self.send(1, "PUT", "/v1/kv/secret", SECRET)[0] == 200)
            eventually("node 5 answers", lambda: self.send(5, "GET", "/metrics")[0] == 200)
            eventually("the cluster has its format level", lambda: self.cluster()["format_level"] > 0)
            eventually("all nodes have applied all", self.is_settled)
        except BaseException:
            self.end()
            raise

    def send(self, number, method, path, body=None):
        return send(method, f"http://127.0.0.1:{self.ports[number]}{path}", body)

    def cluster(self):
        return self.send(1, "GET", "/v1/cluster")[1]

    def is_settled(self):
        hashes = [self.send(number, "GET", "/v1/cluster/hash")[1] for number in (1, 2, 3)]
        return len({json.dumps({**found, "node": 0}) for found in hashes}) == 1

    def keys(self):
        status, found = self.send(1, "GET", "/v1/kv")
        assert status == 200, found
        return {item["key"]: item["value"] for item in found["items"]}

    def state(self):
        """All that a page could change."""
        cluster = self.cluster()
        members = [[member["id"], member["role"], member["address"]] for member in cluster["members"]]
        status, keys = self.send(1, "GET", "/v1/kv")
        assert status == 200, keys
        nodes = []
        for number in self.ports:
            found = self.send(number, "GET", "/metrics")[1]["Ok"]
            names = ["current_term", "vote", "current_leader", "state", "last_log_index", "membership_config"]
            nodes.append({name: found[name] for name in names})
        return {"leader": cluster["leader"], "term": cluster["term"], "members": members, "keys": keys, "nodes": nodes}

    def end(self):
        for node in self.nodes:
            node.kill()
            node.wait()
        self.log.close()
        with open(self.log_path) as log:
            assert "panicked" not in log.read(), f"a node panicked: {self.log_path}"


class Control:
    """The page's own server: serves the page, gives it one attempt after another, and takes its reports."""

    def __init__(self):
        control = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, status, headers, body=b""):
                self.send_response(status)
                for name, value in {**headers, "Access-Control-Allow-Origin": "*", "Connection": "close"}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            def do_GET(self):
                if not self.path.startswith("/page"):
                    return self.answer(404, {})
                with open(os.path.join(HERE, "page.html"), "rb") as page:
                    self.answer(200, {"Content-Type": "text/html"}, page.read())

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path, _, query = self.path.partition("?")
                if path == "/redirect":
                    return self.answer(307, {"Location": urllib.parse.parse_qs(query)["to"][0]})
                following = json.dumps(control.take(json.loads(body))).encode()
                self.answer(200, {"Content-Type": "application/json"}, following)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.run = None
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, report):
        """Takes a report, and returns the next attempt, if there is one."""
        try:
            return self.run.take(report)
        except BaseException as error:
            self.run.failures.append(f"the check itself failed: {error!r}")
            self.run.is_over.set()
            return None


class Run:
    """The attempts of one page."""

    def __init__(self, attempts, relays, check, rebind=None):
        self.attempts, self.relays, self.check, self.rebind = attempts, relays, check, rebind
        self.next = 0
        self.failures = []
        self.is_over = threading.Event()

    def take(self, report):
        if report["name"] is None:
            if self.rebind:
                self.rebind()
        else:
            attempt = self.attempts[self.next]
            assert attempt["name"] == report["name"], report
            relay = self.relays[attempt.get("to", "node")]
            self.next += 1
            try:
                # The deadline is short, because a browser that sends nothing fails the check.
                sent = eventually(f"{report['name']}: the browser sends it, and the node responds", relay.exchanges, 5)
                self.check(attempt, report, sent)
            except AssertionError as error:
                self.failures.append(str(error))
        for relay in self.relays.values():
            relay.begin()
        if self.next == len(self.attempts):
            self.is_over.set()
            return None
        return self.attempts[self.next]


def browse(chromium, scratch, url, run, names):
    """Shows the page in a new browser, until it has made all attempts."""
    profile = tempfile.mkdtemp(prefix="profile-", dir=scratch)
    rules = ",".join(f"MAP {name} 127.0.0.1:{port}" for name, port in names.items())
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
             "--no-proxy-server", f"--host-resolver-rules={rules}", f"--user-data-dir={profile}"]
    log_path = os.path.join(profile, "log")
    with open(log_path, "w") as log:
        # A window keeps the browser open until it is ended.
        command = [chromium, *flags, "--remote-debugging-port=0", url]
        browser = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            is_over = run.is_over.wait(RUN_DEADLINE)
        finally:
            # Chromium has many processes, all in this group.
            os.killpg(browser.pid, 9)
            browser.wait()
    with open(log_path) as log:
        assert is_over, f"the page made {run.next} of {len(run.attempts)} attempts within {RUN_DEADLINE} s: {log.read()}"
    assert not run.failures, "\n".join(run.failures)


def attempts(node, fresh, cluster):
    """What a page tries. `allowed`: the statuses if its origin is allowed; `reads`: what it can then read.

    Those at the end change what the former ones need.
    """
    listed = []

    def attempt(name, way, path, allowed, reads=None, to="node", **more):
        base = fresh if to == "fresh" else node
        listed.append({"name": name, "way": way, "url": base + path, "to": to, "allowed": allowed, "reads": reads, **more})

    def fetch(name, method, path, body, allowed, reads=None, way="fetch", to="node", **init):
        if body is not None:
            init["body"] = body if isinstance(body, str) else json.dumps(body)
        attempt(name, way, path, allowed, reads, to, init={"method": method, **init})

    def put(key):
        return {"Set": {"key": key, "value": "stolen"}}

    # A request with the header is no simple one: a preflight is sent first.
    typed = {"headers": {"Content-Type": "application/json"}}
    plain = {"headers": {"Content-Type": "text/plain"}}
    member = {"id": 4, "address": f"127.0.0.1:{cluster.ports[4]}"}

    fetch("read a value", "GET", "/v1/kv/secret", None, [200], SECRET)
    fetch("read a raw value", "GET", "/v1/kv/secret?raw&consistency=stale", None, [200], SECRET)
    fetch("read a value, without CORS", "GET", "/v1/kv/secret", None, [403], mode="no-cors")
    fetch("list the keys", "GET", "/v1/kv", None, [200], SECRET)
    fetch("read by POST", "POST", "/read", '"secret"', [200], SECRET)
    fetch("read consistently by POST", "POST", "/consistent_read", '"secret"', [200], SECRET, **plain)
    fetch("download a snapshot", "GET", "/v1/snapshot", None, [200], "RKVSNAP")
    fetch("read the status", "GET", "/v1/cluster", None, [200], '"members"')
    fetch("read Raft's metrics", "GET", "/metrics", None, [200], '"current_term"')
    fetch("read the metrics", "GET", "/v1/metrics", None, [200], "rkv_")
    fetch("read a node's identity", "GET", "/raft-identity", None, [200])
    fetch("read the description", "GET", "/openapi.json", None, [200], "openapi")
    attempt("watch by EventSource", "events", "/v1/watch?initial", [200], '"initial"')
    attempt("watch by fetch", "stream", "/v1/watch?initial", [200], SECRET)
    attempt("open a WebSocket", "socket", "/v1/watch", None)
    for way in ("image", "script", "style", "frame", "object"):
        attempt(f"embed a value as {way}", way, "/v1/kv/secret", [403])
        attempt(f"embed a raw value as {way}", way, "/v1/kv/secret?raw", [403])

    fetch("put", "PUT", "/v1/kv/put", "stolen", [200, 204], "revision")
    fetch("write as JSON", "POST", "/write", put("json"), [200, 204], "stolen", **typed)
    fetch("write as text", "POST", "/write", put("text"), [200], "stolen", **plain)
    fetch("write as text, without CORS", "POST", "/write", put("no-cors"), [200], mode="no-cors", **plain)
    fetch("write without a referrer", "POST", "/write", put("no-referrer"), [200, 403], mode="no-cors",
          referrerPolicy="no-referrer")
    fetch("write after a redirect", "POST", "/write", put("x"), [403], way="redirect", mode="no-cors")
    fetch("write from a sandbox", "POST", "/write", put("x"), [403], way="sandbox")
    fetch("write with credentials", "POST", "/write", put("credentials"), [200], credentials="include")
    fetch("pretend to be a node", "PUT", "/v1/kv/x", "stolen", [204], headers={
        "Raft-Forwarded": "2", "Raft-Forwarded-To": f"{cluster.cluster()['cluster_id']}/1/0000000000000001"})
    attempt("write by a beacon", "beacon", "/write", [200], body=json.dumps(put("beacon")))
    # The body of the first form is JSON, with the equals sign in a string.
    text_form = {'{"success":[{"put":{"key":"form","value":"': '"}}]}'}
    attempt("write by a form of text", "form", "/v1/txn", [200], enctype="text/plain", fields=text_form)
    encoded = {"enctype": "application/x-www-form-urlencoded", "fields": {"key": "x"}}
    attempt("write by a form", "form", "/write", [400], **encoded)
    attempt("write by a form with parts", "form", "/write", [400], enctype="multipart/form-data", fields={"key": "x"})
    fetch("touch", "POST", "/v1/kv/put/touch?ttl=1h", None, [200], "revision")
    fetch("a transaction", "POST", "/v1/txn", {"success": [{"put": {"key": "txn", "value": "stolen"}}]}, [200], "revision")

    fetch("make a token", "POST", "/v1/tokens", {"name": "page", "role": "admin"}, [401], "unauthorized", **plain)
    fetch("end the need for tokens", "POST", "/v1/auth", {"required": False}, [401], "unauthorized", **plain)
    fetch("read the tokens", "GET", "/v1/tokens", None, [401], "unauthorized")
    fetch("ask for a vote", "POST", "/raft-vote", "x", [403], mode="no-cors", **plain)
    fetch("initialize a node", "POST", "/init", "", [200], "Ok", to="fresh", **plain)
    fetch("add a node", "POST", "/v1/cluster/members", {**member, "role": "learner"}, [200, 204], "address", **typed)
    fetch("add a learner", "POST", "/add-learner", [4, member["address"]], [200], "Ok", **plain)
    fetch("promote a learner", "POST", "/v1/cluster/members/4/promote", "", [200], "role")
    fetch("change the membership", "POST", "/change-membership", [1, 2, 3], [200], "Ok", **plain)
    fetch("replace a node", "POST", "/v1/cluster/members/3/replace", member, None, **plain)
    fetch("remove a node", "DELETE", "/v1/cluster/members/4", None, None)
    other = next(number for number in (1, 2, 3) if number != cluster.cluster()["leader"])
    fetch("move the leadership", "POST", "/v1/cluster/leader", {"id": other}, [200], "term", **plain)
    fetch("delete a key", "DELETE", "/v1/kv/secret", None, [200, 204], "deleted")
    fetch("delete all keys", "DELETE", "/v1/kv?all", None, [200, 204], "deleted")
    return listed


def check_rejected(cluster, is_same_origin=False):
    """A check that each attempt was rejected, and changed nothing.

    A page after DNS rebinding may read the rejection.
    """
    before = cluster.state()

    def check(attempt, report, sent):
        nonlocal before
        name = report["name"]
        assert all(status == 403 for _, status in sent), f"{name}: {sent}"
        read = report["read"]
        assert read is None or is_same_origin, f"{name}: the page could read {read!r}"
        assert SECRET not in (read or ""), f"{name}: the page could read {read!r}"
        unchanged, before = before, cluster.state()
        assert before == unchanged, f"{name}: the state changed from\n{unchanged}\nto\n{before}"

    return check


def check_allowed(attempt, report, sent):
    name, allowed, reads = attempt["name"], attempt["allowed"], attempt["reads"]
    assert allowed is None or all(status in allowed for _, status in sent), f"{name}: {sent}, not {allowed}"
    assert reads is None or reads in (report["read"] or ""), f"{name}: the page could read only {report}, sent: {sent}"


def check_pages(chromium, server, scratch):
    control = Control()
    page = f"http://127.0.0.1:{control.port}"

    def visit(what, cluster, origin, base, check, rebound=None, chosen=lambda attempt: True):
        begin = time.monotonic()
        # The name of a rebound page leads to its own server at first.
        node = Relay(control.port if rebound else cluster.ports[1])
        fresh = Relay(cluster.ports[5])
        relays = {"node": node, "fresh": fresh}
        node_url = base or f"http://127.0.0.1:{node.port}"
        fresh_url = "http://fresh.example" if base else f"http://127.0.0.1:{fresh.port}"
        names = {"evil.example": node.port if rebound else control.port, "fresh.example": fresh.port}
        tried = [attempt for attempt in attempts(node_url, fresh_url, cluster) if chosen(attempt)]
        control.run = Run(tried, relays, check, lambda: node.rebind(cluster.ports[1]) if rebound else None)
        browse(chromium, scratch, f"{origin}/page.html?control={urllib.parse.quote(page)}", control.run, names)
        print(f"{what}: {len(tried)} attempts in {time.monotonic() - begin:.1f} s", flush=True)

    cluster = Cluster(server, os.path.join(scratch, "closed"), [])
    try:
        visit("a page of this machine is rejected", cluster, page, None, check_rejected(cluster))
        visit("a page of another site is rejected", cluster, "http://evil.example", None, check_rejected(cluster))
        visit("a page after DNS rebinding is rejected", cluster, "http://evil.example", "http://evil.example",
              check_rejected(cluster, is_same_origin=True), rebound=True)
        status, _ = cluster.send(1, "PUT", "/v1/kv/direct", "value")
        assert status == 200 and cluster.keys() == {"secret": SECRET, "direct": "value"}, cluster.keys()
        print("a program writes: yes", flush=True)
    finally:
        cluster.end()

    # The same attempts succeed where they are allowed, so the checks above do not pass for another reason.
    cluster = Cluster(server, os.path.join(scratch, "open"), ["--allowed-origins", page, "--allowed-hosts", "evil.example"])
    try:
        rebound = ["read a value", "read a value, without CORS", "put", "write as text", "watch by fetch"]
        visit("a page under an allowed host can read and write", cluster, "http://evil.example", "http://evil.example",
              lambda attempt, report, sent: check_allowed({**attempt, "allowed": [200]}, report, sent),
              rebound=True, chosen=lambda attempt: attempt["name"] in rebound)
        assert cluster.keys() == {"secret": SECRET, "put": "stolen", "text": "stolen"}, cluster.keys()
        before = cluster.state()
        deleting = ("delete a key", "delete all keys")
        visit("a page of an allowed origin can do the same", cluster, page, None, check_allowed,
              chosen=lambda attempt: attempt["name"] not in deleting)
        written = {"put", "text", "json", "no-cors", "credentials", "beacon", "form", "txn"}
        # Whether the origin is sent without a referrer is for the browser to decide.
        assert cluster.keys().keys() - {"no-referrer"} == {"secret", *written}, cluster.keys()
        after = cluster.state()
        assert after["leader"] != before["leader"], after
        assert after["nodes"][4]["membership_config"] != before["nodes"][4]["membership_config"], after
        visit("and delete", cluster, page, None, check_allowed, chosen=lambda attempt: attempt["name"] in deleting)
        assert cluster.keys() == {}, cluster.keys()
    finally:
        cluster.end()


def main():
    chromium, server = sys.argv[1:]
    scratch = tempfile.mkdtemp(prefix="rkv-browser-")
    try:
        check_pages(chromium, os.path.abspath(server), scratch)
    except AssertionError as error:
        sys.exit(f"check.py: {error}\nThe logs are in {scratch}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
