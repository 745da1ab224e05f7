// Reads the page anew when something has happened, and exchanges the parts that are marked as live.
"use strict";

const WAIT_MS = 500; // events come in swarms
const AGES_MS = 30000; // how long ago something was, is said in the page
const live = document.getElementById("live");
let waiting = null;
let isReading = false;

function say(text) {
  live.hidden = false;
  if (live.textContent !== text) live.textContent = text;
}

function addressOf(element) {
  return element && (element.id ? "#" + element.id : element.getAttribute("href"));
}

function exchange(part, fresh) {
  const focused = part.contains(document.activeElement) ? addressOf(document.activeElement) : null;
  const open = [...part.querySelectorAll("details")].map((one) => one.open && one.parentElement.textContent);
  part.replaceChildren(...document.adoptNode(fresh).childNodes);
  for (const one of part.querySelectorAll("details")) one.open = open.includes(one.parentElement.textContent);
  if (focused === null) return;
  for (const one of part.querySelectorAll("a, button, summary")) {
    if (addressOf(one) === focused) {
      one.focus({ preventScroll: true });
      return;
    }
  }
}

async function read() {
  waiting = null;
  if (isReading) return later();
  isReading = true;
  try {
    const answer = await fetch(location.href, { cache: "no-store", redirect: "error" });
    if (answer.status === 502 || answer.status === 503) return say("not live: the verifier does not answer");
    if (!answer.ok) throw new Error(String(answer.status));
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = fresh.getElementById(part.id);
      if (other !== null && !part.isEqualNode(other)) exchange(part, other);
    }
  } catch {
    say("not live: the dashboard does not answer");
  } finally {
    isReading = false;
  }
}

function later() {
  if (waiting === null) waiting = setTimeout(read, WAIT_MS);
}

if (document.querySelectorAll("[data-live]").length > 1) {
  const events = new EventSource("/events");
  events.onopen = () => {
    say("live");
    later(); // what happened while nobody listened
  };
  events.onerror = () => say("not live: the dashboard does not answer");
  events.onmessage = (event) => {
    const news = JSON.parse(event.data);
    say(news.agent_id ? news.agent_id + ": " + news.text : news.text);
    later();
  };
  setInterval(() => document.hidden || later(), AGES_MS);
}
