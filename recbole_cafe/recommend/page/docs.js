// The OpenAPI document as a page, without anything from elsewhere.
const el = (tag, ...children) => { const made = document.createElement(tag); made.append(...children); return made }
const schemaOf = (doc, { $ref }) => doc.components.schemas[$ref.split('/').at(-1)]

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split('/').at(-1)
  if (schema.anyOf) return schema.anyOf.filter(({ type }) => type !== 'null').map(typeOf).join(' or ')
  const bounds = [['minimum', 'from'], ['maximum', 'to'], ['maxItems', 'at most'], ['maxLength', 'at most']]
  const said = bounds.filter(([name]) => name in schema).map(([name, word]) => `${word} ${schema[name].toLocaleString('en')}`)
  const type = schema.type === 'array' ? `list of (${typeOf(schema.items)})` : schema.type
  return [type, ...said].join(', ')
}

function table(entries) {
  return el('table', ...entries.map(([name, schema, text]) => {
    const given = schema.default === undefined || schema.default === null ? '' : ` (${JSON.stringify(schema.default)})`
    return el('tr', el('td', el('code', name)), el('td', typeOf(schema)), el('td', `${text ?? ''}${given}`))
  }))
}

function exampleOf(doc, path, body) {
  if (!body) return `curl ${location.origin}${path}`
  const fields = Object.entries(body.properties).filter(([, schema]) => schema.examples)
  const example = Object.fromEntries(fields.map(([name, schema]) => [name, schema.examples[0]]))
  return `curl ${location.origin}${path} -H 'content-type: application/json' -d '${JSON.stringify(example)}'`
}

const doc = await (await fetch('/openapi.json')).json()
for (const [path, methods] of Object.entries(doc.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    const content = about.requestBody?.content['application/json'].schema
    const body = content && schemaOf(doc, content)
    const section = el('section', el('h2', el('code', `${method.toUpperCase()} ${path}`)), el('p', about.description))
    if (body) section.append(table(Object.entries(body.properties).map(([name, schema]) => [name, schema, schema.description])))
    if (about.parameters) section.append(table(about.parameters.map(({ name, schema, description }) => [name, schema, description])))
    const answer = about.responses['200'].content?.['application/json']?.schema
    if (answer?.$ref) section.append(el('h3', 'Answer'), table(Object.entries(schemaOf(doc, answer).properties).map(([name, schema]) => [name, schema, schema.description])))
    section.append(el('pre', exampleOf(doc, path, body)))
    document.getElementById('paths').append(section)
  }
}
