// A few figures of the cluster, the scheduler and the queue.

import { fetchJson } from "./api.js";
import { byId, element, fill, showProblem } from "./elements.js";
import { count, megabytes, whole } from "./format.js";

/** Fetch and show them; gives the status, or null where it could not be had. */
export async function showCluster() {
  try {
    const status = await fetchJson("v1/status");
    showProblem(byId("cluster-message"), null);
    fill(byId("figures"), figuresOf(status).map(figure));
    byId("version").textContent = `· Rayzyme ${status.version}`;
    return status;
  } catch (error) {
    showProblem(byId("cluster-message"), error.message);
    return null;
  }
}

function figuresOf({ scheduler, queue, cluster }) {
  const jobs = [
    ["Queued", whole(queue.queued), ""],
    ["Running", whole(queue.running), `of ${whole(scheduler.max_concurrent_jobs)} at a time`],
    ["Completed", whole(queue.completed), ""],
    ["Failed", whole(queue.failed), queue.cancelled ? `${whole(queue.cancelled)} cancelled` : ""],
  ];
  const leads = scheduler.running
    ? ["Scheduler", "leads", scheduler.strategy.replaceAll("_", " "), "good"]
    : ["Scheduler", "absent", "queued jobs wait for it", "bad"];
  if (cluster === null) return [leads, ["Ray", "not connected", "", "bad"], ...jobs];
  return [
    leads,
    ["Nodes", whole(cluster.nodes), ""],
    share("CPUs", cluster.cpus, whole),
    cluster.gpus.total > 0 ? share("GPUs", cluster.gpus, (number) => String(Math.round(number * 100) / 100)) : ["GPUs", "none", ""],
    share("Memory", cluster.memory_mb, megabytes),
    ["Actors", whole(cluster.shards + cluster.model_hosts), `${count(cluster.shards, "shard")}, ${count(cluster.model_hosts, "model")}`],
    ...jobs,
  ];
}

function share(name, { total, used }, shown) {
  return [name, shown(total), `${shown(used)} reserved`];
}

function figure([name, value, more, state = ""]) {
  return element("div", {}, element("dt", {}, name), element("dd", { class: state }, value, more && element("small", {}, more)));
}
