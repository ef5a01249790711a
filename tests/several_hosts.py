"""Several processes of this machine as the hosts of one run."""

import socket


def free_address() -> str:
    """HOST:PORT that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


def of_hosts(number: int = 2) -> list[dict[str, str]]:
    """The environment variables that make each of so many processes one host of a new run."""
    common = {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": str(number)}
    return [common | {"JAX_PROCESS_ID": str(host)} for host in range(number)]
