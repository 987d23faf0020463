"""A board over TVM's RPC: the contract of all devices on a real server, and everything that can go wrong on the way."""

import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import ssh_server
from device_contract import OUTPUTS, PREFIX, QUICK, DeviceContract, artifact_folders, reference, samples
from rpc_farm import KEY, Link, server, tracker, wait_for_boards, wait_until
from rpc_support import at, board

from deploy.device import RunPlan
from deploy.device.rpc import RpcDevice
from deploy.device.rpc_client import Session
from deploy.device.rpc_link import Offer, Place
from deploy.device.rpc_source import source_of
from deploy.errors import DeviceError, InputError
from deploy.target_parts import PowerSpec

LONG = RunPlan(warmup_s=0, seconds=0.1, min_samples=1, max_samples=10, timeout_s=60)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return artifact_folders(tmp_path_factory)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server without a tracker, whose sessions leave nothing."""
    folder = tmp_path_factory.mktemp("served")
    with server(folder=folder) as program:
        yield program
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def device():
    with server() as program, RpcDevice(at(program.place)) as opened:  # its own: nobody else gets at it meanwhile
        yield opened


def works(device, libraries):
    run = device.run(libraries["good"], PREFIX, samples(2), OUTPUTS, QUICK)
    np.testing.assert_array_equal(run.outputs[1][0], reference(samples(2)[1])[0])
    return run


class TestContract(DeviceContract):
    def test_what_is_not_a_library(self, device, libraries, tmp_path):
        (tmp_path / "alone.so").write_text("")
        for file in (tmp_path / "missing.so", tmp_path, tmp_path / "alone.so"):
            with pytest.raises(InputError, match=r"give the libmodel\.so of an artifact"):
                self.run(device, file)
        self.refused(device, libraries, "unresolved", "no symbol missing_function")


def test_a_board_of_a_tracker(libraries):
    with tracker() as tracking, server("--tracker", str(tracking.place), "--key", KEY, "--emulated"):
        wait_for_boards(tracking.place, 1)
        target = replace(board(tracker=str(tracking.place), key=KEY), power=PowerSpec("estimate", (("active", 4.0),)))
        with RpcDevice(target) as device:
            run = works(device, libraries)
            energy = device.run(libraries["good"], PREFIX, [], OUTPUTS, replace(QUICK, energy_seconds=0.1)).energy
        assert run.how == "emulated"
        assert run.peak_rss_bytes is None
        assert run.conditions["board"].startswith("box (127.0.0.1:")
        assert energy.how == "estimated"
        wait_for_boards(tracking.place, 1)  # it was given back
        with pytest.raises(DeviceError, match=r"has no board of the key other \(it has: box\): start one with"):
            RpcDevice(board(tracker=str(tracking.place), key="other")).__enter__()


def test_what_the_board_says_of_its_state(libraries, tmp_path):
    cpufreq = tmp_path / "devices/system/cpu"
    for number in range(64):
        (cpufreq / f"cpu{number}/cpufreq").mkdir(parents=True)
        (cpufreq / f"cpu{number}/cpufreq/scaling_governor").write_text("powersave\n")
        (cpufreq / f"cpu{number}/cpufreq/scaling_cur_freq").write_text("600000\n")
        (cpufreq / f"cpu{number}/cpufreq/cpuinfo_max_freq").write_text("1500000\n")
    (tmp_path / "class/thermal/thermal_zone0").mkdir(parents=True)
    (tmp_path / "class/thermal/thermal_zone0/temp").write_text("52500\n")
    with server("--sysfs", tmp_path) as program, RpcDevice(at(program.place)) as device:
        found = works(device, libraries).conditions
    assert (found["governor"], found["governor_before"]) == ("powersave", "powersave")
    assert (found["frequency_hz"], found["max_frequency_hz"]) == (600e6, 1500e6)
    assert (found["temperature_c"], found["temperature_c_before"]) == (52.5, 52.5)
    assert found["load_average"] >= 0


def test_a_time_limit_is_of_the_run_and_not_of_the_queue(served, libraries):
    """A client that waits while another has the board loses nothing of its own time."""
    with RpcDevice(at(served.place)) as first:
        ended = []

        def second():
            with RpcDevice(at(served.place, timeout=1.0)) as device:
                ended.append(device.run(libraries["good"], PREFIX, samples(1), OUTPUTS, replace(QUICK, timeout_s=2)))

        waiting = threading.Thread(target=second)
        waiting.start()
        first.run(libraries["good"], PREFIX, [], OUTPUTS, replace(QUICK, seconds=2.0))
        assert not ended
    waiting.join(20)
    assert len(ended) == 1


@pytest.fixture
def linked(served):
    """A link to the server of this module, to be broken."""
    link = Link(served.place)
    yield link
    link.close()


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_a_link_that_ends_meanwhile(linked, libraries, how):
    with RpcDevice(at(linked.place, timeout=2.0)) as device:
        works(device, libraries)
        threading.Timer(0.6, lambda: linked.end(how)).start()
        started = time.monotonic()
        with pytest.raises(DeviceError, match=r"the link to board board \(127.0.0.1:\d+\) was cut"):
            device.run(libraries["hangs"], PREFIX, samples(1), OUTPUTS, LONG)
        assert time.monotonic() - started < 5
        works(device, libraries)  # the board is free at once, and what hung is gone


def test_a_link_that_is_silent(linked, libraries):
    """Nothing comes and nothing says so: the limit of this side ends it, in words that say which limit."""
    with Session(Offer(linked.place, "board", ""), 60.0, 1.0) as session:
        linked.mode = "hang"
        with pytest.raises(DeviceError, match=r"did not answer within 1 s"):
            session.ask({"do": "hello"})
        linked.end("cut")
    linked.mode = "pass"
    with RpcDevice(at(linked.place, timeout=2.0)) as device:  # the server noticed, and is free
        works(device, libraries)


def test_a_link_that_garbles(linked, libraries):
    linked.mode = "garble"
    with pytest.raises(DeviceError, match=r"answered nonsense"):
        RpcDevice(at(linked.place, timeout=1.0)).__enter__()


def test_a_slow_link(linked, libraries):
    linked.delay_s = 0.05
    with RpcDevice(at(linked.place, timeout=5.0)) as device:
        works(device, libraries)


def test_a_server_that_is_killed_is_back_at_once(libraries):
    with server() as program, RpcDevice(at(program.place)) as device:
        works(device, libraries)
        threading.Timer(0.6, program.kill_server).start()
        with pytest.raises(DeviceError, match="was cut"):
            device.run(libraries["hangs"], PREFIX, samples(1), OUTPUTS, LONG)
        works(device, libraries)
        program.wait_for("the server ended with killed by SIGKILL.*; it is started again")
        wait_until(lambda: len(program.children()) == 2)  # the server and this session: what hung is gone


def test_the_end_of_a_program_is_the_end_of_all_of_it(libraries, tmp_path):
    with server(folder=tmp_path) as program, RpcDevice(at(program.place)) as device:
        threading.Timer(0.6, program.process.terminate).start()
        with pytest.raises(DeviceError, match="was cut"):
            device.run(libraries["hangs"], PREFIX, samples(1), OUTPUTS, LONG)
        assert program.process.wait(10) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_limit_of_a_session_is_told(served):
    """Upstream's client is told of a shutdown, and not of the limit."""
    session = Session(Offer(served.place, "board", ""), 1.0, 5.0)
    with session, pytest.raises(DeviceError, match=r"ended the session: it had lasted 1 s, its limit"):
        session.ask({"do": "run", "command": ["sleep", "60"], "limit_s": 60}, takes_s=60)
    served.wait_for(r"a session was ended after 1 s, its limit")


def test_nobody_and_others_at_an_address():
    with pytest.raises(DeviceError, match=r"refuses connections at 127\.0\.0\.1:1: check that its server runs"):
        RpcDevice(board(host="127.0.0.1", port=1)).__enter__()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = Place("127.0.0.1", silent.getsockname()[1])
        with pytest.raises(DeviceError, match=r"did not answer within"):
            Session(Offer(place, "board", ""), 10, 0.5)
        with pytest.raises(DeviceError, match=r"the tracker 127\.0\.0\.1:\d+ did not answer within 0.5 s"):
            RpcDevice(board(tracker=str(place), key="k", timeout=0.5)).__enter__()


def test_a_server_of_another_key(served):
    with pytest.raises(DeviceError, match="serves another key"):
        RpcDevice(at(served.place, key="rpi4")).__enter__()


def test_code_for_another_processor(served):
    target = replace(at(served.place), tvm_options=(("kind", "llvm"), ("mtriple", "riscv64-linux-gnu")))
    with pytest.raises(DeviceError, match=r"cannot run code for riscv64: its processor is called x86_64"):
        RpcDevice(target).__enter__()


@pytest.mark.parametrize(
    "options",
    [{}, {"tracker": "h"}, {"key": "k"}, {"tracker": "h", "key": "k", "host": "b"}],
)
def test_a_device_that_lacks_something(options):
    with pytest.raises(InputError, match=r"needs `tracker` and `key`, or the `host` of one board"):
        source_of(board(**options))


def test_addresses():
    assert source_of(board(tracker="h", key="k")).tracker == Place("h", 9190)
    assert source_of(board(tracker="[::1]:7", key="k")).tracker == Place("::1", 7)
    assert source_of(board(host="h", port=3)).server == Place("h", 3)
    for wrong in ("h:99999", "h h", "a:b:c", ""):
        with pytest.raises(InputError, match="is no address of a tracker"):
            source_of(board(tracker=wrong, key="k"))
    with pytest.raises(InputError, match="spaces or colons"):
        source_of(board(tracker="h", key="a:b"))


@pytest.fixture
def hub(tmp_path):
    """An SSH server, as on the machine that the tracker is on."""
    if lacking := ssh_server.missing():
        pytest.skip(f"not installed: {', '.join(lacking)}")
    made = ssh_server.Server(tmp_path / "ssh").make()
    config = made.folder / "ssh_config"
    config.write_text(f"{config.read_text()}Port {made.port}\nIdentityFile {made.folder}/key\n")
    try:
        made.start()
    except RuntimeError as error:
        pytest.skip(str(error))
    yield made
    made.stop()


def test_a_tracker_behind_ssh(hub, libraries):
    """Tracker and boards are reached through one connection, which is opened and closed by the device."""
    with tracker() as tracking, server("--tracker", str(tracking.place), "--key", KEY):
        wait_for_boards(tracking.place, 1)
        address = f"ssh://127.0.0.1:{tracking.place.port}"
        with RpcDevice(board(tracker=address, key=KEY, config=str(hub.folder / "ssh_config"))) as device:
            works(device, libraries)
            assert hub.connections()
            hub.cut()
            with pytest.raises(DeviceError, match="was cut"):
                works(device, libraries)
            works(device, libraries)  # through a new one
        wait_until(lambda: not hub.connections())


def test_a_tunnel_that_cannot_be(hub):
    config = str(hub.folder / "ssh_config")
    (hub.folder / "accepted").write_text("")
    with pytest.raises(DeviceError, match=r"board 127\.0\.0\.1 does not accept your key"):
        RpcDevice(board(tracker="ssh://127.0.0.1", key=KEY, config=config)).__enter__()
    with pytest.raises(InputError, match="is no address of a tracker"):
        source_of(board(tracker="ssh://a b", key=KEY))
