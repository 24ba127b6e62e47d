// The vendor's own SDK manages Parvis: a project, somebody who may use models in it and nothing else, a key, and a token for the metrics.
// PARVIS_URL=http://127.0.0.1:8080 PARVIS_API_KEY=… node examples/scaleway-sdk.mjs
import { Accountv3 } from '@scaleway/sdk-account'
import { createClient } from '@scaleway/sdk-client'
import { Cockpitv1 } from '@scaleway/sdk-cockpit'
import { Iamv1alpha1 } from '@scaleway/sdk-iam'

const apiURL = process.env.PARVIS_URL ?? 'http://127.0.0.1:8080'
// Without an access key the SDK sends no key at all; which one is told by the secret.
const accessKey = 'SCWXXXXXXXXXXXXXXXXX'
const client = createClient({ apiURL, accessKey, secretKey: process.env.PARVIS_API_KEY, defaultRegion: 'fr-par' })
const account = new Accountv3.ProjectAPI(client)
const iam = new Iamv1alpha1.API(client)
const cockpit = new Cockpitv1.RegionalAPI(client)

const project = await account.createProject({ name: `example-${Date.now()}`, description: 'made by an example' })
const application = await iam.createApplication({ name: 'example', description: '' })
const policy = await iam.createPolicy({
  name: 'example',
  description: '',
  applicationId: application.id,
  rules: [{ permissionSetNames: ['GenerativeApisModelAccess'], projectIds: [project.id], condition: '' }],
})
const key = await iam.createAPIKey({ applicationId: application.id, description: 'example' })
console.log('made:', project.name, key.accessKey)

const statusIn = async (place) => {
  const answer = await fetch(`${apiURL}${place}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${key.secretKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({
      model: process.env.PARVIS_MODEL ?? 'tiny-chat',
      max_tokens: 20,
      messages: [{ role: 'user', content: 'What is the capital of France?' }],
    }),
  })
  await answer.arrayBuffer()
  return answer.status
}
console.log('in its project:', await statusIn(`/${project.id}`))
console.log('in the default project:', await statusIn(''))

const { dataSources } = await cockpit.listDataSources({ projectId: project.id })
const token = await cockpit.createToken({ projectId: project.id, name: 'example', tokenScopes: ['read_only_metrics'] })
console.log('sources:', dataSources.map(({ name }) => name).join(', '))

await cockpit.deleteToken({ tokenId: token.id })
await iam.deletePolicy({ policyId: policy.id })
await iam.deleteApplication({ applicationId: application.id })
await account.deleteProject({ projectId: project.id })
await account.getProject({ projectId: project.id }).catch((error) => console.log('gone:', error.name))
