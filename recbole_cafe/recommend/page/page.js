// The page of the service: a history, and what the models say of it. Text from the service becomes text nodes alone.
const SHOWN_INTENTS = 8
const $ = (id) => document.getElementById(id)

const state = { history: [], k: 10, seen: false, perIntent: null, intents: [], chosen: ['', ''], compare: false }
const names = new Map() // token -> {title, intent}
let models = []
let panels = []

// Small things -------------------------------------------------------------------------------------------------------

function el(tag, { on = {}, ...properties } = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name === 'class') made.className = value
    else if (name in made) made[name] = value
    else made.setAttribute(name, value)
  }
  for (const [name, listener] of Object.entries(on)) made.addEventListener(name, listener)
  made.append(...children)
  return made
}

async function ask(path, body, signal) {
  const options = body === undefined ? {} : {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body),
  }
  const answer = await fetch(path, { ...options, signal })
  const content = await answer.json()
  if (!answer.ok) throw new Error(content.error ?? answer.statusText)
  return content
}

function know(items) {
  for (const { item, title, intent } of items) names.set(item, { title, intent })
}

const titleOf = (token) => names.get(token)?.title || token

function percent(value) {
  if (value >= 0.1) return `${(100 * value).toFixed(0)} %`
  return value >= 0.0001 ? `${(100 * value).toPrecision(2)} %` : '< 0.01 %'
}

const shown = (entry) => (entry.probability === undefined ? entry.score.toPrecision(3) : percent(entry.probability))

function bar(parts) {
  const made = el('div', { class: 'bar', 'aria-hidden': 'true', hidden: !parts.length })
  for (const [kind, share] of parts) {
    const part = el('span', { class: kind })
    part.style.width = `${100 * Math.max(0, Math.min(1, share || 0))}%`
    made.append(part)
  }
  return made
}

// *intent* in a sentence is emphasised
function sentence(text) {
  return text.split('*').map((part, i) => (i % 2 ? el('em', {}, part) : document.createTextNode(part)))
}

// The address keeps the state, so that it can be sent to somebody --------------------------------------------------------

function remember() {
  const words = new URLSearchParams()
  for (const token of state.history) words.append('h', token)
  for (const intent of state.intents) words.append('i', intent)
  words.set('m', state.chosen[0])
  if (state.compare) words.set('c', state.chosen[1])
  if (state.k !== 10) words.set('k', state.k)
  if (state.seen) words.set('seen', 1)
  if (state.perIntent) words.set('per', state.perIntent)
  window.history.replaceState(null, '', `#${words}`)
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1))
  const known = models.map((model) => model.name)
  const number = (name, otherwise) => Number.parseInt(words.get(name), 10) || otherwise
  state.history = words.getAll('h')
  state.intents = words.getAll('i')
  state.chosen = [known.includes(words.get('m')) ? words.get('m') : known[0],
    known.includes(words.get('c')) ? words.get('c') : known[1] ?? known[0]]
  state.compare = words.has('c') && known.length > 1
  state.k = [10, 20, 50].includes(number('k')) ? number('k') : 10
  state.perIntent = [1, 2, 3].includes(number('per')) ? number('per') : null
  state.seen = words.has('seen')
}

// History --------------------------------------------------------------------------------------------------------------

function add(...tokens) {
  state.history.push(...tokens)
  changed()
}

function removeAt(place) {
  state.history.splice(place, 1)
  changed()
  const buttons = $('history').querySelectorAll('button')
  ;(buttons[Math.min(place, buttons.length - 1)] ?? $('search')).focus()
}

function drawHistory() {
  $('history').replaceChildren(...state.history.map((token, place) => {
    const { intent } = names.get(token) ?? {}
    return el('li', { 'data-item': token },
      el('span', {}, el('span', { class: 'name' }, titleOf(token)), el('span', { class: 'of' }, intent ?? '')),
      el('button', {
        class: 'drop', type: 'button', 'aria-label': `Take ${titleOf(token)} back`, on: { click: () => removeAt(place) },
      }, '×'),
      bar([['e0', 0]]))
  }))
  $('clear').hidden = !state.history.length
  drawMattered()
}

// How much each item of the history counted: for one item of a list, or for the whole list
function drawMattered(row) {
  const rows = row ? [row] : panels.flatMap((panel) => panel.rows)
  const amounts = new Map()
  for (const { reason } of rows) {
    for (const { item, amount } of reason?.evidence ?? []) amounts.set(item, (amounts.get(item) ?? 0) + amount)
  }
  const most = Math.max(...amounts.values(), 0)
  for (const entry of $('history').children) {
    const share = most ? (amounts.get(entry.dataset.item) ?? 0) / most : 0
    entry.querySelector('.bar').hidden = !most
    entry.querySelector('.bar span').style.width = `${100 * share}%`
  }
  $('mattered').textContent = !most || !state.history.length ? ''
    : row ? `bars: how much each counted for ${row.title || row.item}` : 'bars: how much each counted for the list'
}

// Type-ahead -------------------------------------------------------------------------------------------------------------

const search = { options: [], active: -1, controller: null }

async function suggest() {
  search.controller?.abort()
  search.controller = new AbortController()
  const text = $('search').value.trim()
  if (text.length > 100 || text.includes(',')) return close()
  const words = new URLSearchParams({ q: text, k: 12, model: state.chosen[0] })
  try {
    const { items } = await ask(`/items?${words}`, undefined, search.controller.signal)
    know(items)
    search.options = items
    search.active = text && items.length ? 0 : -1
    drawOptions(document.activeElement === $('search'))
  } catch (error) {
    if (error.name !== 'AbortError') tell(error.message, true)
  }
}

function drawOptions(open) {
  $('options').replaceChildren(...search.options.map(({ item, title, intent }, i) => el('li', {
    id: `option-${i}`, role: 'option', 'aria-selected': String(i === search.active),
    on: { mousedown: (event) => { event.preventDefault(); pick(i) } },
  }, el('span', { class: 'name' }, title || item), el('span', { class: 'of' }, [title && item, intent].filter(Boolean).join(' · ')))))
  const isOpen = open && search.options.length > 0
  $('options').hidden = !isOpen
  $('search').setAttribute('aria-expanded', String(isOpen))
  $('search').setAttribute('aria-activedescendant', isOpen && search.active >= 0 ? `option-${search.active}` : '')
  if (isOpen && search.active >= 0) $(`option-${search.active}`).scrollIntoView({ block: 'nearest' })
}

function close() {
  search.options = []
  search.active = -1
  drawOptions(false)
}

function pick(i) {
  const { item } = search.options[i]
  search.controller?.abort()
  $('search').value = ''
  close()
  tell('')
  add(item)
}

// Tokens as they are, separated by commas
async function addTyped() {
  const typed = $('search').value.split(',').map((token) => token.trim()).filter(Boolean).slice(0, 100)
  if (!typed.length) return
  const words = new URLSearchParams(typed.map((token) => ['token', token]))
  words.set('model', state.chosen[0])
  try {
    const { items } = await ask(`/items?${words}`)
    know(items)
    const known = new Set(items.map(({ item }) => item))
    const unknown = typed.filter((token) => !known.has(token))
    tell(unknown.length ? `unknown: ${unknown.join(', ')}` : '', true)
    if (items.length) {
      $('search').value = ''
      close()
      add(...typed.filter((token) => known.has(token)))
    }
  } catch (error) {
    tell(error.message, true)
  }
}

function typed(event) {
  const n = search.options.length
  if ((event.key === 'ArrowDown' || event.key === 'ArrowUp') && n) {
    event.preventDefault()
    search.active = (search.active + (event.key === 'ArrowDown' ? 1 : -1) + n) % n
    drawOptions(true)
  } else if (event.key === 'Enter') {
    event.preventDefault()
    if (search.active >= 0 && !$('options').hidden) pick(search.active)
    else addTyped()
  } else if (event.key === 'Escape') {
    close()
  } else if (event.key === 'Backspace' && !$('search').value && state.history.length) {
    state.history.pop()
    changed()
  }
}

function tell(text, isWrong = false) {
  $('told').textContent = text
  $('told').classList.toggle('wrong', isWrong)
}

// A panel: what one model says -------------------------------------------------------------------------------------------

class Panel {
  constructor(place) {
    this.place = place
    this.rows = []
    this.root = document.querySelectorAll('.panel')[place]
    this.select = el('select', {
      'aria-label': 'Model', on: { change: () => { state.chosen[place] = this.select.value; changed() } },
    })
    this.told = el('p', { class: 'hint', role: 'status' })
    this.intents = el('div', { class: 'intents' })
    this.key = el('div', { class: 'key' })
    this.list = el('ol', { class: 'list' })
    this.titles = ['Next intent', 'Next item'].map((text) => el('h3', {}, text))
    this.head = el('div', { class: 'head' }, this.select)
    this.root.append(this.head, this.told, this.titles[0], this.intents, this.titles[1], this.key, this.list)
  }

  get model() { return models.find((model) => model.name === state.chosen[this.place]) }

  setModels() {
    this.select.replaceChildren(...models.map((model) => el('option', { value: model.name }, model.name)))
    this.select.value = state.chosen[this.place]
  }

  async refresh() {
    this.controller?.abort()
    const { signal } = this.controller = new AbortController()
    const { name, tells_reasons: reasons, tells_intents: tells } = this.model
    const about = { model: name, history: state.history }
    const question = { ...about, k: state.k, exclude_seen: !state.seen, reasons }
    if (state.perIntent) question.per_intent = state.perIntent
    if (state.intents.length) question.intents = state.intents
    this.root.classList.add('busy')
    try {
      const [answer, next] = await Promise.all([
        ask('/recommend', question, signal), tells ? ask('/intents', { ...about, k: SHOWN_INTENTS }, signal) : null,
      ])
      const [{ items, unknown }] = answer.lists
      know(items)
      this.rows = items
      this.tell(unknown.length ? `unknown to this model: ${unknown.map(titleOf).join(', ')}`
        : items.length ? '' : 'nothing is left to recommend')
      this.drawIntents(next?.intents ?? [])
    } catch (error) {
      if (error.name === 'AbortError') return false
      this.rows = []
      this.drawIntents([])
      this.tell(error.message, true)
    }
    this.root.classList.remove('busy')
    return true
  }

  tell(text, isWrong = false) {
    this.told.textContent = text
    this.told.hidden = !text
    this.told.classList.toggle('wrong', isWrong)
  }

  drawIntents(entries) {
    const kept = state.intents.filter((name) => !entries.some(({ intent }) => intent === name))
    const rows = [...entries, ...kept.map((intent) => ({ intent }))]
    const values = entries.map((entry) => entry.probability ?? entry.score)
    const [least, most] = [Math.min(0, ...values), Math.max(...values)]
    this.titles[0].hidden = !rows.length
    this.intents.replaceChildren(...rows.map((entry, i) => el('button', {
      type: 'button', 'aria-pressed': String(state.intents.includes(entry.intent)), disabled: entry.intent === null,
      on: { click: () => this.toggle(entry.intent) },
    }, el('span', { class: 'name' }, entry.intent ?? 'without'), bar([['i', (values[i] - least) / (most - least)]]),
    el('span', { class: 'number' }, i < values.length ? shown(entry) : ''))))
  }

  toggle(intent) {
    const has = state.intents.includes(intent)
    state.intents = has ? state.intents.filter((one) => one !== intent) : [...state.intents, intent]
    changed()
  }

  // other: the rows of the other panel, if there is one
  draw(other) {
    const there = new Map(other?.map(({ item, rank }) => [item, rank]))
    const most = Math.max(...this.rows.map((row) => row.probability ?? row.score))
    this.list.replaceChildren(...this.rows.map((row) => el('li', {
      on: {
        mouseenter: () => drawMattered(row), mouseleave: () => drawMattered(),
        focusin: () => drawMattered(row), focusout: () => drawMattered(),
      },
    },
    el('button', { class: 'take', type: 'button', title: 'Add to the history', on: { click: () => add(row.item) } },
      el('span', { class: 'rank' }, String(row.rank)),
      el('span', {}, el('span', { class: 'name' }, row.title || row.item), el('span', { class: 'of' }, row.intent ?? ''),
        el('span', { class: 'there' }, other ? (there.has(row.item) ? `#${there.get(row.item)} there` : 'only here') : '')),
      el('span', { class: 'number' }, shown(row))),
    bar(this.parts(row).map(([kind, amount]) => [kind, amount / most])),
    el('p', { class: 'why' }, ...sentence(row.reason?.text ?? '')))))
    const counts = this.rows.some((row) => row.reason?.evidence)
    const key = counts ? ['items of the history', 'intent and the item’s share in it'] : []
    this.key.replaceChildren(...key.map((text, i) => el('span', { class: `k${i}` }, text)))
  }

  // What the number of a row is the sum of
  parts({ reason, probability }) {
    if (reason?.evidence) {
      const parts = reason.evidence.map(({ amount }, i) => [`e${Math.min(i, 2)}`, amount])
      return [...parts, ['i', reason.weight * reason.intent_probability * reason.share_in_intent]]
    }
    return probability === undefined ? [] : [['e0', probability]] // scores have no zero to draw from
  }
}

// All of it --------------------------------------------------------------------------------------------------------------

async function changed() {
  delete document.body.dataset.ready
  remember()
  drawHistory()
  const [first, second] = panels
  second.root.hidden = !state.compare
  $('compare').textContent = state.compare ? 'One model' : 'Compare'
  panels.forEach((panel) => { panel.select.value = state.chosen[panel.place] })
  const active = state.compare ? panels : [first]
  if (!state.compare) second.rows = []
  const done = await Promise.all(active.map((panel) => panel.refresh()))
  if (done.includes(false)) return // a later change draws
  first.draw(state.compare ? second.rows : null)
  if (state.compare) second.draw(first.rows)
  drawHistory()
  document.body.dataset.ready = state.history.join(',')
}

async function nameHistory() {
  const unnamed = [...new Set(state.history.filter((token) => !names.has(token)))]
  for (let i = 0; i < unnamed.length; i += 100) {
    const words = new URLSearchParams(unnamed.slice(i, i + 100).map((token) => ['token', token]))
    words.set('model', state.chosen[0])
    know((await ask(`/items?${words}`)).items)
  }
}

async function show() {
  recall()
  $('k').value = state.k
  $('per-intent').value = state.perIntent ?? ''
  $('seen').checked = state.seen
  const { items, intents, data } = models[0]
  $('about').textContent = `${data ? `${data}: ` : ''}${items.toLocaleString('en')} items, ${intents.toLocaleString('en')} intents`
  panels.forEach((panel) => panel.setModels())
  await nameHistory()
  await changed()
}

async function begin() {
  models = (await ask('/models')).models
  panels = [new Panel(0), new Panel(1)]
  panels[0].head.append(el('button', {
    id: 'compare', type: 'button', hidden: models.length < 2, on: { click: () => { state.compare = !state.compare; changed() } },
  }))
  $('search').addEventListener('input', suggest)
  $('search').addEventListener('focus', suggest)
  $('search').addEventListener('blur', () => drawOptions(false))
  $('search').addEventListener('keydown', typed)
  $('clear').addEventListener('click', () => { state.history = []; state.intents = []; changed(); $('search').focus() })
  $('k').addEventListener('change', (event) => { state.k = Number(event.target.value); changed() })
  $('per-intent').addEventListener('change', (event) => { state.perIntent = Number(event.target.value) || null; changed() })
  $('seen').addEventListener('change', (event) => { state.seen = event.target.checked; changed() })
  window.addEventListener('hashchange', show)
  document.addEventListener('keydown', (event) => {
    if (event.key === '/' && !event.target.matches('input, select')) { event.preventDefault(); $('search').focus() }
  })
  await show()
}

begin().catch((error) => tell(`the service does not answer: ${error.message}`, true))
