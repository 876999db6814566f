// Comfort only: everything works without this file.
'use strict';

// Forms that may have been open for long get a fresh ticket when they are sent.
for (const form of document.querySelectorAll('form[data-fresh]')) {
  form.addEventListener('submit', async (event) => {
    if (form.dataset.sent) return;
    event.preventDefault();
    form.dataset.sent = '1';
    const button = event.submitter;
    if (button) button.setAttribute('aria-busy', 'true');
    try {
      const answer = await fetch('/ticket', { method: 'POST' });
      if (answer.ok) form.elements.ticket.value = (await answer.json()).ticket;
    } catch { /* The ticket it came with may still be good. */ }
    form.requestSubmit(button);
  });
}

// The state as it changes.
const now = document.getElementById('now');
if (now) {
  const said = document.createElement('p');
  said.className = 'sr';
  said.setAttribute('role', 'status');
  now.after(said);
  const source = new EventSource('/events');
  source.addEventListener('now', (message) => {
    now.innerHTML = message.data;
    const headline = now.querySelector('.headline');
    if (headline && said.textContent !== headline.textContent) said.textContent = headline.textContent;
  });
  addEventListener('pagehide', () => source.close());
}

// The picture, as long as somebody looks: the next is asked for when the last has come.
const live = document.getElementById('live');
if (live) {
  const address = live.getAttribute('src');
  const next = () => setTimeout(() => {
    if (document.hidden) next();
    else live.src = address + (address.includes('?') ? '&' : '?') + 'at=' + Date.now();
  }, 500);
  live.addEventListener('load', next);
  live.addEventListener('error', next);
  if (live.complete) next();
}

// What the dog before the camera would be worth as a picture of the animal that is chosen.
const aid = document.querySelector('[data-aid]');
if (aid) {
  const form = aid.closest('form');
  setInterval(async () => {
    if (document.hidden) return;
    const name = form.elements.name?.value || form.elements.new.value;
    try {
      const answer = await fetch('/animals/aid?name=' + encodeURIComponent(name));
      const words = answer.ok ? await answer.text() : aid.textContent;
      if (words !== aid.textContent) aid.textContent = words;
    } catch { /* The next one may come through. */ }
  }, 1500);
}

// Approach and masks drawn with a finger.
const draw = document.querySelector('[data-draw]');
if (draw) {
  const svg = document.getElementById('drawing');
  const approach = document.getElementById('approach');
  const masks = document.getElementById('masks');
  let target = null;
  const polygon = (points, kind) => {
    const shape = document.createElementNS('http://www.w3.org/2000/svg', 'polygon');
    shape.setAttribute('points', points);
    if (kind) shape.setAttribute('class', kind);
    svg.append(shape);
  };
  const paint = () => {
    svg.replaceChildren();
    polygon(approach.value, '');
    for (const line of masks.value.split('\n')) polygon(line, 'mask');
  };
  draw.addEventListener('click', (event) => {
    if (!target) return;
    const frame = draw.getBoundingClientRect();
    const part = (value, size) => Math.min(1, Math.max(0, value / size)).toFixed(3);
    const point = part(event.clientX - frame.left, frame.width) + ',' + part(event.clientY - frame.top, frame.height);
    target.value += (target.value && !target.value.endsWith('\n') ? ' ' : '') + point;
    paint();
  });
  for (const button of document.querySelectorAll('[data-draw-on]')) {
    button.addEventListener('click', () => {
      target = document.getElementById(button.dataset.drawOn);
      if (target === approach) approach.value = '';
      else if (masks.value.trim()) masks.value = masks.value.trim() + '\n';
      draw.classList.add('drawing');
      paint();
    });
  }
  document.querySelector('[data-draw-clear]').addEventListener('click', () => {
    approach.value = '';
    masks.value = '';
    paint();
  });
  document.querySelector('.draw-buttons').hidden = false;
  for (const field of [approach, masks]) field.addEventListener('input', paint);
  paint();
}
