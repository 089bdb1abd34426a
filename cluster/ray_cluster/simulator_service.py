"""Start and scaling of the simulated users on Ray Serve: one application for the rule-based users of a run,
and one for each hosted model."""

import time
from functools import partial

import ray
from ray import serve
from ray.exceptions import RayError

from cluster.config.run_config import RunConfig
from cluster.console.log import info
from cluster.console.progress import quiet_libraries
from cluster.ray_cluster.placement import node_resources, ray_address
from cluster.ray_cluster.ray_internals import scale_deployment
from cluster.ray_cluster.serve_watchdog import ServeWatchdog
from cluster.ray_cluster.start import LOCALHOST, start_ray, task_on_driver_node
from simulators.serving.app import DEPLOYMENT, build_app, start_serve
from simulators.serving.auth import key_hash
from simulators.serving.hosted_llm import SERVE_PORT, deploy_llm, llm_url, remove_llm
from simulators.serving.llm_proxy import connect_llm_proxy, deploy_llm_proxy, proxy_app_name, remove_llm_proxy
from simulators.serving.user_client import ServeUser
from simulators.user import User
from simulators.users.factory import connect_users

DEPLOY_TIMEOUT_S = 120.0


def app_name(config: RunConfig) -> str:
    """The Serve application of this run's simulated users."""
    return f"simulators-{config.run.name}"


def fast_starting_apps(config: RunConfig) -> list[str]:
    """The Serve applications of this run whose replicas start within seconds: all but hosted models."""
    return [app_name(config), proxy_app_name(config.run.name)]


def start_simulators(config: RunConfig, *, http: bool) -> None:
    """Deploys the simulated users. With `http` the rule-based ones also answer on the loopback address.

    In a Tune trial a task outside the trial's placement group deploys them: the group has no resources for
    Serve's actors.
    """
    if ray.util.get_current_placement_group() is None:
        return _deploy(config, http)
    task = task_on_driver_node(_deploy)
    start_s = sum(llm.start_timeout_s for llm in config.simulator.llms())
    ray.get(task.remote(config, http), timeout=DEPLOY_TIMEOUT_S + start_s)


def _deploy(config: RunConfig, http: bool) -> None:
    llms = config.simulator.llms()
    host = config.simulator.host if http else LOCALHOST
    expected = key_hash(config.simulator.api_key_env, host=host) if http else ""
    location = "EveryNode" if llms else "HeadOnly" if http else "NoServer"
    start_serve(host=host, port=SERVE_PORT, location=location)
    # Rules only, no tasks: each call contains its scenario.
    gyms = config.gyms.open(with_data=False)
    taken = node_resources(config.ray.nodes.simulator)
    application = build_app(config.simulator, http=http, expected=expected, gyms=gyms, resources=taken)
    # `scale_simulators` changes the number of replicas.
    serve.run(
        application,
        name=app_name(config),
        route_prefix="/" if http else None,
        external_scaler_enabled=True,
    )
    for llm in llms:
        info(f"simulator {llm.name}: loading {llm.model}")
        deploy_llm(llm, run=config.run.name, resources=taken, expected=expected)
    if llms and not http:
        deploy_llm_proxy(config.run.name, resources=taken)


def scale_simulators(config: RunConfig, num_replicas: int) -> None:
    """Starts more replicas of the rule-based users, or drains some. Raises ValueError if Serve refuses."""
    try:
        scaled = scale_deployment(DEPLOYMENT, app=app_name(config), num_replicas=num_replicas)
        ray.get(scaled, timeout=DEPLOY_TIMEOUT_S)
    except RayError as error:  # for example while its controller restarts
        raise ValueError(f"Serve did not scale the simulators: {type(error).__name__}") from error


def stop_simulators(config: RunConfig, *, and_ray: bool) -> None:
    """Stops the simulated users, and with `and_ray` Ray as well."""
    if and_ray:
        ray.shutdown()
    else:
        serve.delete(app_name(config))
        for llm in config.simulator.llms():
            remove_llm(llm, run=config.run.name)
        if config.simulator.llms():
            remove_llm_proxy(config.run.name)


def connect_user(config: RunConfig, name: str | None) -> User:
    """Client of the simulator of this name for a rollout actor; None means the recipe's mix."""
    handle = serve.get_deployment_handle(DEPLOYMENT, app_name=app_name(config))
    return connect_users(
        config.simulator,
        rules=ServeUser(handle, config.simulator),
        gyms=config.gyms.open(with_data=False),
        names=None if name is None else [name],
        llm_urls={llm.name: llm_url(llm, run=config.run.name) for llm in config.simulator.llms()},
        make_transport=partial(connect_llm_proxy, config.run.name),
        num_processes=config.rollout.num_actors,
    )


def serve_forever(config: RunConfig) -> None:
    """`userrl serve`: hosts the simulated users over HTTP until Ctrl-C."""
    quiet_libraries()
    started_ray = start_ray(ray_address(config), nodes=config.ray.nodes)
    serve_watchdog = ServeWatchdog(fast_starting_apps(config))
    try:
        start_simulators(config, http=True)
        info(f"simulated users: http://{config.simulator.host}:{SERVE_PORT}/reply (Ctrl-C stops them)")
        while True:
            time.sleep(1)
    finally:
        serve_watchdog.close()
        stop_simulators(config, and_ray=started_ray)
